//! The file under a file backend: how it is opened, what alignment it asks for, and its errors.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FallocateFlags, StatxFlags};
use rustix::io::Errno;

use super::{AlignedBuffer, BackendInfo, Operation};
use memmap2::{MmapOptions, MmapRaw};

use crate::error::{Error, ErrorKind, Result};

/// Assumed where the kernel does not say: it divides the logical block of every filesystem that we know.
const DIRECT_ALIGNMENT_BYTES: usize = 4096;

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

/// An open file and how it was opened.
#[derive(Debug)]
pub struct DataFile {
    file: File,
    /// For errors; a scratch file has this name no more.
    path: PathBuf,
    is_scratch: bool,
    len_bytes: u64,
    direct: bool,
    alignment_bytes: usize,
    fallback_reason: String,
}

impl DataFile {
    /// A sparse file of `len_bytes` in `directory` that has no name any more: whatever happens to the
    /// process, nothing is left behind.
    pub fn scratch(directory: &Path, len_bytes: u64, direct: DirectIo) -> Result<Self> {
        let path = directory.join(format!(".tiermem-scratch-{}-{:x}", std::process::id(), unique()));
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(0o600);
        let opened = Self::open_as(&options, &path, direct, |file| {
            file.write_all_at(&AlignedBuffer::zeroed(DIRECT_ALIGNMENT_BYTES), 0)
        });
        // A refused open may have created the file all the same.
        let unlinked = std::fs::remove_file(&path);
        let opened = Self { is_scratch: true, ..opened? };
        unlinked.map_err(|error| opened.failed("unlinking", error))?;
        opened.file.set_len(0).map_err(|error| opened.failed("sizing", error))?;
        opened
            .file
            .set_len(len_bytes)
            .map_err(|error| opened.failed("sizing", error).with_context("nbytes", len_bytes))?;
        Ok(Self { len_bytes, ..opened })
    }

    /// Maps the file into memory, shared: the kernel may write its pages out and take them back.
    pub(super) fn map(&self) -> Result<MmapRaw> {
        MmapOptions::new()
            .len(self.len_bytes as usize)
            .map_raw(&self.file)
            .map_err(|error| self.failed("mapping", error))
    }

    /// An existing file, as long as it is now.
    pub fn open(path: &Path, direct: DirectIo) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let mut opened = Self::open_as(&options, path, direct, |file| {
            file.read_at(&mut AlignedBuffer::zeroed(DIRECT_ALIGNMENT_BYTES), 0).map(drop)
        })?;
        opened.len_bytes = opened.file.metadata().map_err(|error| opened.failed("measuring", error))?.len();
        Ok(opened)
    }

    /// Takes an open file over, buffered; `path` is for errors.
    #[cfg(any(test, feature = "test-utils"))]
    pub fn from_file(file: File, path: &Path, len_bytes: u64) -> Self {
        Self {
            file,
            path: path.to_owned(),
            is_scratch: false,
            len_bytes,
            direct: false,
            alignment_bytes: 1,
            fallback_reason: String::new(),
        }
    }

    fn open_as(
        options: &OpenOptions,
        path: &Path,
        direct: DirectIo,
        probe: impl Fn(&File) -> std::io::Result<()>,
    ) -> Result<Self> {
        let open = |flags: i32| options.clone().custom_flags(flags).open(path);
        let place = |error| Error::io("opening a data file", error).with_context("path", path.display());
        let buffered = |file, fallback_reason| Self {
            file,
            path: path.to_owned(),
            is_scratch: false,
            len_bytes: 0,
            direct: false,
            alignment_bytes: 1,
            fallback_reason,
        };
        if direct == DirectIo::Off {
            return open(0).map(|file| buffered(file, String::new())).map_err(place);
        }
        let refusal = match open(libc::O_DIRECT) {
            Ok(file) => match direct_alignment(&file, &probe) {
                Ok(alignment_bytes) => {
                    return Ok(Self { direct: true, alignment_bytes, ..buffered(file, String::new()) });
                }
                Err(refusal) if is_direct_refusal(&refusal) => refusal,
                Err(error) => return Err(place(error)),
            },
            Err(refusal) if is_direct_refusal(&refusal) => refusal,
            Err(error) => return Err(place(error)),
        };
        if direct == DirectIo::Require {
            let message =
                format!("this filesystem refuses O_DIRECT ({refusal}); use direct = \"auto\" or another directory");
            return Err(Error::new(ErrorKind::Unsupported, message).with_context("path", path.display()));
        }
        // The refused open may have created the file.
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let reason = format!("O_DIRECT refused ({refusal}), buffered I/O instead");
        file.map(|file| buffered(file, reason)).map_err(place)
    }

    /// Notes why the preferred engine or mode does not run.
    pub(super) fn note_fallback(&mut self, reason: &str) {
        let separator = if self.fallback_reason.is_empty() { "" } else { "; " };
        self.fallback_reason = format!("{reason}{separator}{}", self.fallback_reason);
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    pub(super) fn alignment_bytes(&self) -> usize {
        self.alignment_bytes
    }

    pub(super) fn is_direct(&self) -> bool {
        self.direct
    }

    pub(super) fn is_scratch(&self) -> bool {
        self.is_scratch
    }

    /// Whether the driver of the drive under the file has queues that can be polled; `None` where the kernel does not say.
    pub(super) fn has_polled_queues(&self) -> Option<bool> {
        let device = rustix::fs::fstat(&self.file).ok()?.st_dev;
        let node = format!("/sys/dev/block/{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
        // A partition has its drive's queue.
        let of = |queue: &str| std::fs::read_to_string(format!("{node}/{queue}/io_poll")).ok();
        of("queue").or_else(|| of("../queue")).map(|text| text.trim() != "0")
    }

    pub(super) fn info(&self, engine: &'static str) -> BackendInfo {
        let fallback_reason = self.fallback_reason.clone();
        BackendInfo { direct: self.direct, fallback_reason, ..BackendInfo::new(engine) }
    }

    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|error| self.failed("syncing", error))
    }

    /// Punches a hole, or writes zeros where the filesystem has no holes.
    pub(super) fn discard(&self, offset: u64, nbytes: u64) -> Result<()> {
        if nbytes == 0 {
            return Ok(());
        }
        let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(&self.file, how, offset, nbytes) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                let zeros = AlignedBuffer::zeroed(nbytes.min(1 << 20) as usize);
                let mut done = 0;
                while done < nbytes {
                    let length = (nbytes - done).min(zeros.len() as u64) as usize;
                    self.file
                        .write_all_at(&zeros[..length], offset + done)
                        .map_err(|error| self.moving_failed(Operation::Write, error, offset + done, length))?;
                    done += length as u64;
                }
                Ok(())
            }
            Err(error) => Err(self.failed("discarding a range of", error.into()).with_context("offset", offset)),
        }
    }

    fn what(&self) -> &'static str {
        if self.is_scratch { "a scratch file" } else { "a data file" }
    }

    fn failed(&self, doing: &str, error: std::io::Error) -> Error {
        Error::io(&format!("{doing} {}", self.what()), error).with_context("path", self.path.display())
    }

    /// A transfer that failed or ended early.
    pub(super) fn moving_failed(
        &self,
        operation: Operation,
        error: std::io::Error,
        offset: u64,
        nbytes: usize,
    ) -> Error {
        let doing = if operation == Operation::Read { "reading" } else { "writing" };
        let error = if error.kind() == std::io::ErrorKind::UnexpectedEof {
            let message = format!("{doing} {} failed: it ends early, something truncated it", self.what());
            Error::new(ErrorKind::Corruption, message)
                .with_context("path", self.path.display())
                .with_context("expected_bytes", self.len_bytes)
        } else {
            self.failed(doing, error)
        };
        error.with_context("offset", offset).with_context("nbytes", nbytes)
    }
}

fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    nanos ^ (NEXT.fetch_add(1, Ordering::Relaxed) << 48)
}

/// What the kernel asks offsets, lengths and addresses to be multiples of, or why it takes no direct I/O.
fn direct_alignment(file: &File, probe: impl Fn(&File) -> std::io::Result<()>) -> std::io::Result<usize> {
    // Some filesystems accept the flag at open and refuse the first transfer.
    probe(file)?;
    let found = rustix::fs::statx(file.as_fd(), "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    match found {
        Ok(found) if found.stx_mask & StatxFlags::DIOALIGN.bits() != 0 => {
            let asked = found.stx_dio_mem_align.max(found.stx_dio_offset_align) as usize;
            if asked.is_power_of_two() && asked <= AlignedBuffer::ALIGNMENT_BYTES {
                Ok(asked)
            } else {
                Err(std::io::Error::from_raw_os_error(libc::EOPNOTSUPP))
            }
        }
        // Kernels before 6.1, and filesystems that do not say.
        _ => Ok(DIRECT_ALIGNMENT_BYTES),
    }
}

fn is_direct_refusal(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | libc::EPERM))
}

/// Free bytes of the filesystem that holds `directory`.
pub fn free_bytes(directory: &Path) -> Result<u64> {
    let info = rustix::fs::statvfs(directory).map_err(|error| {
        Error::io("asking a filesystem for its free space", error.into()).with_context("directory", directory.display())
    })?;
    Ok(info.f_bavail * info.f_frsize)
}
