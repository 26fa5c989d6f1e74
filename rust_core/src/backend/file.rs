//! Bytes in a file, moved by `pread` and `pwrite`, past the page cache where the filesystem allows it.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::{AlignedBuffer, Backend, BackendInfo, IoBatch, check_extents};
use crate::error::{Error, ErrorKind, Result};

/// Offsets and lengths under `O_DIRECT`: the logical block of every filesystem that we run on divides it.
pub(super) const DIRECT_ALIGNMENT_BYTES: usize = 4096;

/// Whether to bypass the page cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DirectIo {
    /// `O_DIRECT` where the filesystem takes it; otherwise buffered, and the record says why.
    Auto,
    /// `O_DIRECT`, or an error that names the filesystem's reason.
    Require,
    /// Through the page cache.
    Off,
}

impl DirectIo {
    pub(super) fn auto() -> Self {
        Self::Auto
    }
}

/// An open scratch file and how it was opened.
#[derive(Debug)]
pub struct ScratchFile {
    pub(super) file: File,
    pub(super) len_bytes: u64,
    pub(super) direct: bool,
    pub(super) fallback_reason: String,
}

/// A sparse file of `len_bytes` in `directory` that has no name any more: whatever happens to the
/// process, nothing is left behind.
pub fn scratch_file(directory: &Path, len_bytes: u64, direct: DirectIo) -> Result<ScratchFile> {
    let path = directory.join(format!(".tiermem-scratch-{}-{:x}", std::process::id(), unique()));
    let create = |flags: i32| {
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).custom_flags(flags).open(&path)
    };
    let place = |error: Error| error.with_context("directory", directory.display());
    let mut fallback_reason = String::new();
    let mut is_direct = direct != DirectIo::Off;
    let mut opened = create(if is_direct { libc::O_DIRECT } else { 0 });
    if is_direct {
        let refusal = match &opened {
            Ok(file) => probe_direct(file).err().filter(is_direct_refusal),
            Err(error) if is_direct_refusal(error) => {
                Some(std::io::Error::from_raw_os_error(error.raw_os_error().unwrap_or(libc::EINVAL)))
            }
            Err(_) => None,
        };
        if let Some(refusal) = refusal {
            // A refused open may have created the file all the same.
            let _ = std::fs::remove_file(&path);
            if direct == DirectIo::Require {
                let message =
                    format!("this filesystem refuses O_DIRECT ({refusal}); use direct = \"auto\" or another directory");
                return Err(place(Error::new(ErrorKind::Unsupported, message)));
            }
            fallback_reason = format!("O_DIRECT refused ({refusal}), buffered I/O instead");
            is_direct = false;
            opened = create(0);
        }
    }
    let file = opened.map_err(|error| place(Error::io("creating a scratch file", error)))?;
    std::fs::remove_file(&path).map_err(|error| place(Error::io("unlinking a scratch file", error)))?;
    file.set_len(len_bytes)
        .map_err(|error| place(Error::io("sizing a scratch file", error)).with_context("nbytes", len_bytes))?;
    Ok(ScratchFile { file, len_bytes, direct: is_direct, fallback_reason })
}

fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    nanos ^ (NEXT.fetch_add(1, Ordering::Relaxed) << 48)
}

/// Some filesystems accept the flag at open and refuse the first transfer.
fn probe_direct(file: &File) -> std::io::Result<()> {
    let page = AlignedBuffer::zeroed(DIRECT_ALIGNMENT_BYTES);
    file.write_all_at(&page, 0)?;
    file.set_len(0)
}

fn is_direct_refusal(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EPERM))
}

/// Free bytes of the filesystem that holds `directory`.
pub fn free_bytes(directory: &Path) -> Result<u64> {
    let path = CString::new(directory.as_os_str().as_bytes())
        .map_err(|_| Error::new(ErrorKind::Config, "a directory name contains a zero byte"))?;
    // SAFETY: an all-zero statvfs is a valid value of this plain C struct.
    let mut info: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` ends with a zero byte and `info` is writable for the call.
    let code = unsafe { libc::statvfs(path.as_ptr(), &raw mut info) };
    if code != 0 {
        return Err(Error::io("asking a filesystem for its free space", std::io::Error::last_os_error())
            .with_context("directory", directory.display()));
    }
    Ok(info.f_bavail * info.f_frsize)
}

/// A file backend that uses one system call per extent.
pub struct FileBackend {
    scratch: ScratchFile,
}

impl FileBackend {
    /// Takes a scratch file over.
    pub fn new(scratch: ScratchFile) -> Self {
        Self { scratch }
    }
}

impl ScratchFile {
    /// Notes why the preferred engine does not run.
    pub(super) fn because(mut self, reason: &Error) -> Self {
        let before = std::mem::take(&mut self.fallback_reason);
        let separator = if before.is_empty() { "" } else { "; " };
        self.fallback_reason = format!("{reason}{separator}{before}");
        self
    }

    pub(super) fn alignment_bytes(&self) -> usize {
        if self.direct { DIRECT_ALIGNMENT_BYTES } else { 1 }
    }

    pub(super) fn info(&self, engine: &'static str) -> BackendInfo {
        BackendInfo { engine, direct: self.direct, fallback_reason: self.fallback_reason.clone() }
    }

    pub(super) fn sync(&self) -> Result<()> {
        self.file
            .sync_data()
            .map_err(|error| Error::io("syncing a scratch file", error).with_context("fd", self.file.as_raw_fd()))
    }
}

impl Backend for FileBackend {
    fn len_bytes(&self) -> u64 {
        self.scratch.len_bytes
    }

    fn alignment_bytes(&self) -> usize {
        self.scratch.alignment_bytes()
    }

    fn info(&self) -> BackendInfo {
        self.scratch.info("file")
    }

    fn read(&self, mut batch: IoBatch) -> (IoBatch, Result<()>) {
        let mut result = check_extents(self, &batch);
        if result.is_ok() {
            result = batch.extents.iter().try_for_each(|extent| {
                let out = &mut batch.buffer[extent.buffer_offset..extent.buffer_offset + extent.nbytes];
                self.scratch.file.read_exact_at(out, extent.offset).map_err(|error| {
                    Error::io("reading a scratch file", error)
                        .with_context("offset", extent.offset)
                        .with_context("nbytes", extent.nbytes)
                })
            });
        }
        (batch, result)
    }

    fn write(&self, batch: IoBatch) -> (IoBatch, Result<()>) {
        let mut result = check_extents(self, &batch);
        if result.is_ok() {
            result = batch.extents.iter().try_for_each(|extent| {
                let bytes = &batch.buffer[extent.buffer_offset..extent.buffer_offset + extent.nbytes];
                self.scratch.file.write_all_at(bytes, extent.offset).map_err(|error| {
                    Error::io("writing a scratch file", error)
                        .with_context("offset", extent.offset)
                        .with_context("nbytes", extent.nbytes)
                })
            });
        }
        (batch, result)
    }

    fn sync(&self) -> Result<()> {
        self.scratch.sync()
    }
}
