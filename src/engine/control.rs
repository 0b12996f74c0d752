//! Pausing and stopping an engine: by a file in the bank, by a signal, or because the trainer
//! that it works for ended.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::status::process::is_alive;

/// While this file exists in the bank, its engines pause.
pub const PAUSE_FILE: &str = "pause";

/// How often files and processes are checked.
const LOOK: Duration = Duration::from_millis(200);

/// Checked by the loop between steps.
pub struct Control<'a> {
    stop: &'a (dyn Fn() -> bool + Sync),
    pause: PathBuf,
    paused: AtomicBool,
    looked: parking_lot::Mutex<Option<Instant>>,
}

impl<'a> Control<'a> {
    /// For an engine of the bank in `dir`. The engine ends once `stop` returns true.
    pub fn new(dir: &Path, stop: &'a (dyn Fn() -> bool + Sync)) -> Self {
        Self {
            stop,
            pause: dir.join(PAUSE_FILE),
            paused: AtomicBool::new(false),
            looked: parking_lot::Mutex::new(None),
        }
    }

    /// Whether the engine should end.
    pub fn stopped(&self) -> bool {
        (self.stop)()
    }

    /// # Errors
    /// [`Error::Interrupted`] when the engine should end.
    pub fn check(&self) -> Result<()> {
        if self.stopped() {
            Err(Error::Interrupted)
        } else {
            Ok(())
        }
    }

    /// Whether the engine should pause. Checks the file a few times per second at most.
    pub fn paused(&self) -> bool {
        let mut looked = self.looked.lock();
        if looked.is_none_or(|at| at.elapsed() >= LOOK) {
            *looked = Some(Instant::now());
            self.paused.store(self.pause.exists(), Ordering::Relaxed);
        }
        self.paused.load(Ordering::Relaxed)
    }

    /// Sleeps in short slices, so that stopping is noticed within 50 ms.
    ///
    /// # Errors
    /// [`Error::Interrupted`] when the engine should end.
    pub fn sleep(&self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
}

/// Pauses or resumes the engines of the bank in `dir`.
///
/// # Errors
/// [`Error::Io`] when the bank cannot be written.
pub fn set_paused(dir: &Path, paused: bool) -> Result<()> {
    let path = dir.join(PAUSE_FILE);
    if paused {
        std::fs::write(&path, b"").map_err(|e| Error::io(&path, e))
    } else {
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io(&path, e)),
            _ => Ok(()),
        }
    }
}

/// Calls `ended` on a new thread once process `pid` has ended, for whatever reason.
///
/// # Errors
/// [`Error::Backend`] when no thread can be started.
pub fn when_process_ends(pid: u32, ended: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name("parent watch".into())
        .spawn(move || {
            wait_for_end(pid);
            ended();
        })
        .map(drop)
        .map_err(|e| Error::backend("watching the trainer", e))
}

#[cfg(target_os = "linux")]
fn wait_for_end(pid: u32) {
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
    // SAFETY: a system call without pointers; a result >= 0 is a descriptor that is ours.
    let fd = unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0);
        if fd >= 0 {
            Some(OwnedFd::from_raw_fd(fd as i32))
        } else {
            None
        }
    };
    let Some(fd) = fd else {
        return poll_for_end(pid);
    };
    loop {
        let mut entry = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one entry, as the count says.
        let n = unsafe { libc::poll(&raw mut entry, 1, -1) };
        if n > 0 {
            return;
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn wait_for_end(pid: u32) {
    poll_for_end(pid);
}

/// For systems without process descriptors (Linux before 5.3).
fn poll_for_end(pid: u32) {
    while is_alive(pid) {
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_pauses_and_its_absence_resumes() {
        let dir = tempfile::tempdir().unwrap();
        let never = || false;
        set_paused(dir.path(), true).unwrap();
        assert!(Control::new(dir.path(), &never).paused());
        set_paused(dir.path(), false).unwrap();
        set_paused(dir.path(), false).unwrap();
        assert!(!Control::new(dir.path(), &never).paused());
    }

    #[test]
    fn the_end_of_a_process_is_noticed_even_before_it_is_collected() {
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .spawn()
            .unwrap();
        let pid = child.id();
        assert!(is_alive(pid));
        let (tell, told) = std::sync::mpsc::channel();
        when_process_ends(pid, move || {
            let _ = tell.send(());
        })
        .unwrap();
        assert!(told.recv_timeout(Duration::from_millis(50)).is_err());
        child.kill().unwrap();
        told.recv_timeout(Duration::from_secs(60)).unwrap();
        assert!(!is_alive(pid));
        child.wait().unwrap();
        assert!(!is_alive(pid));
    }

    #[test]
    fn stopping_ends_a_sleep() {
        let dir = tempfile::tempdir().unwrap();
        let stop = || true;
        let control = Control::new(dir.path(), &stop);
        assert!(matches!(
            control.sleep(Duration::from_secs(3600)),
            Err(Error::Interrupted)
        ));
    }
}
