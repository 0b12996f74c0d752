//! Facts about this machine and its processes.

/// Name of this machine.
pub fn host() -> String {
    let mut buffer = [0u8; 256];
    // SAFETY: the length given is one less than the buffer's, which stays zero-terminated.
    let done = unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len() - 1) };
    let name = buffer.split(|b| *b == 0).next().unwrap_or_default();
    if done == 0 && !name.is_empty() {
        String::from_utf8_lossy(name).into_owned()
    } else {
        "localhost".into()
    }
}

/// Peak resident memory of this process, bytes; `None` where the system does not report it.
pub fn peak_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// Whether process `pid` runs on this machine. A zombie does not.
pub fn is_alive(pid: u32) -> bool {
    let Ok(pid) = libc::pid_t::try_from(pid) else {
        return false;
    };
    if pid <= 0 {
        return false;
    }
    // SAFETY: signal 0 only asks.
    let found = unsafe { libc::kill(pid, 0) } == 0
        || std::io::Error::last_os_error().raw_os_error() == Some(libc::EPERM);
    found && !is_zombie(pid)
}

/// Ended, but not yet collected by its parent.
fn is_zombie(pid: libc::pid_t) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
    })
}
