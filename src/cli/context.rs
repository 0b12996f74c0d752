//! What all subcommands share: the package's directory, Ctrl-C, logging.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tracing_subscriber::EnvFilter;

use crate::error::{Error, Result};

/// Set by Ctrl-C.
static STOP: AtomicBool = AtomicBool::new(false);

/// A command that has not stopped this long after Ctrl-C is killed. What it wrote is complete at
/// any moment, and one call of a large model can take longer.
const PATIENCE: Duration = Duration::from_millis(1500);

/// What the commands get from the Python package.
#[derive(Debug, Clone)]
pub struct Context {
    /// The directory of the installed Python package, which holds the embedded model.
    pub package: Option<PathBuf>,
}

impl Context {
    /// The directory that `--model` names: `embedded`, or a path.
    ///
    /// # Errors
    /// [`Error::NotFound`] when the package does not hold the embedded model.
    pub fn model(&self, name: &Path) -> Result<PathBuf> {
        if name != Path::new("embedded") || name.is_dir() {
            return Ok(name.to_path_buf());
        }
        let path = self
            .package
            .as_deref()
            .unwrap_or(Path::new("python/mosaicbank"))
            .join("models")
            .join("embedded");
        if path.join("model_index.json").is_file() {
            Ok(path)
        } else {
            Err(Error::NotFound {
                what: "the embedded model".into(),
                path,
                hint: "\nhint: this installation lacks it; name a model directory instead"
                    .into(),
            })
        }
    }
}

/// Logs go to standard error; `MOSAICBANK_LOG` sets the level (default `info`).
pub(super) fn start_logging() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let filter = EnvFilter::try_from_env("MOSAICBANK_LOG")
            .unwrap_or_else(|_| EnvFilter::new("info"));
        let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
        let _ = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(terminal)
            .with_target(false)
            // It would print them to standard error, and panic when that cannot be written.
            .log_internal_errors(false)
            .try_init();
    });
}

/// From here on Ctrl-C (or SIGTERM) stops the command: [`check_stop`] reports it, and a command
/// that does not check is killed shortly after.
///
/// # Errors
/// [`Error::Backend`] when the handler cannot be installed.
pub(super) fn catch_stop() -> Result<()> {
    static ONCE: Once = Once::new();
    let mut out = Ok(());
    ONCE.call_once(|| {
        out = ctrlc::set_handler(|| {
            if STOP.swap(true, Ordering::SeqCst) {
                end_now();
            }
            std::thread::spawn(|| {
                std::thread::sleep(PATIENCE);
                // Unlike `eprintln!` this does not panic when nothing can be written.
                let _ = writeln!(std::io::stderr(), "mosaicbank: stopped");
                end_now();
            });
        })
        .map_err(|e| Error::backend("Ctrl-C handler", e));
    });
    out
}

/// Ends the process immediately: the clean-up of libtorch and Python would crash while threads
/// still compute.
fn end_now() -> ! {
    // SAFETY: runs no clean-up, and does not return.
    unsafe { libc::_exit(i32::from(super::EXIT_INTERRUPTED)) }
}

/// # Errors
/// [`Error::Interrupted`] after Ctrl-C.
pub(super) fn check_stop() -> Result<()> {
    if STOP.load(Ordering::SeqCst) {
        Err(Error::Interrupted)
    } else {
        Ok(())
    }
}
