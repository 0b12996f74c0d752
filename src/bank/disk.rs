//! Files of a bank: written whole or not at all, with real blocks where they are mapped, and
//! readable by everyone who may read the directory.

use std::fs::{File, Metadata};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::error::{Error, Result};

/// Writes `bytes` to a temporary file beside `path`, syncs it, and renames it into place.
pub(super) fn write_beside(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(|e| Error::io(dir, e))?;
    file.write_all(bytes)
        .and_then(|()| file.as_file().sync_all())
        .map_err(|e| Error::io(path, e))?;
    share(file.path(), dir);
    file.persist(path).map_err(|e| Error::io(path, e.error))?;
    Ok(())
}

/// Lets everyone use a file who may use its directory: temporary files and LMDB's are private to
/// their owner, but trainers and engines may run as different users.
pub(super) fn share(file: &Path, dir: &Path) {
    let mode = std::fs::metadata(dir).map_or(0o644, |m| m.permissions().mode() & 0o666);
    let _ = std::fs::set_permissions(file, PermissionsExt::from_mode(mode));
}

/// Gives bytes `from..from + len` of a file real blocks: a write to a mapped hole is a SIGBUS when
/// the disk is full.
pub(super) fn allocate(file: &File, from: u64, len: u64) -> std::io::Result<()> {
    // SAFETY: a plain system call on our descriptor.
    match unsafe {
        libc::posix_fallocate(file.as_raw_fd(), from as libc::off_t, len as libc::off_t)
    } {
        0 => Ok(()),
        errno => Err(std::io::Error::from_raw_os_error(errno)),
    }
}

/// Whether the first `len` bytes of a file may have holes: a copy often has, where the original
/// had blocks of zeros.
pub(super) fn may_have_holes(file: &Metadata, len: u64) -> bool {
    file.blocks().saturating_mul(512) < len
}

/// Device and inode: whether a path still leads to the file that was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId(u64, u64);

impl FileId {
    pub fn of(file: &Metadata) -> Self {
        Self(file.dev(), file.ino())
    }
}
