//! The boundary to libtorch: tch's plain methods panic when libtorch throws, mostly when out of
//! memory. Every public entry of this room runs inside [`torch`], which returns an error instead.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use tch::Device;

use crate::error::{Error, Result, panic_message};

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// Phrases in the out-of-memory messages of libtorch and CUDA.
const OUT_OF_MEMORY: [&str; 4] = [
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
];

/// A panic that is caught here is reported as an error, not on standard error as well.
fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
}

/// Runs `work` without gradients, and converts libtorch's exceptions to our error.
pub(super) fn torch<T>(
    device: Device,
    what: &str,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    install_hook();
    let before = QUIET.replace(true);
    let out = catch_unwind(AssertUnwindSafe(|| tch::no_grad(work)));
    QUIET.set(before);
    let error = match out {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(Error::Backend { what, message })) => (what, message),
        Ok(Err(other)) => return Err(other),
        Err(payload) => (what.to_owned(), panic_message(&*payload)),
    };
    let (what, message) = error;
    // The first line is the message; libtorch's stack trace follows.
    let message = message
        .trim_start_matches("called `Result::unwrap()` on an `Err` value: ")
        .replace("\\n", "\n");
    if OUT_OF_MEMORY.iter().any(|m| message.contains(m)) {
        let device = match device {
            Device::Cuda(i) => format!("cuda:{i}"),
            _ => "cpu".into(),
        };
        let message = message.lines().next().unwrap_or_default().to_owned();
        return Err(Error::OutOfMemory {
            device,
            what,
            message,
        });
    }
    Err(Error::backend(
        what,
        message.lines().take(3).collect::<Vec<_>>().join(" "),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Kind, Tensor};

    #[test]
    fn what_libtorch_throws_becomes_an_error() {
        let error = torch(Device::Cpu, "multiplying", || {
            let a = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
            Ok(a.matmul(&a))
        });
        let text = error.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(
            text.contains("multiplying") && text.contains("2x3"),
            "{text}"
        );
    }

    #[test]
    fn memory_that_cannot_be_had_is_told_apart() {
        let error = torch(Device::Cpu, "allocating", || {
            Ok(Tensor::empty([1 << 50], (Kind::Float, Device::Cpu)))
        });
        assert!(matches!(error, Err(Error::OutOfMemory { .. })), "{error:?}");
    }
}
