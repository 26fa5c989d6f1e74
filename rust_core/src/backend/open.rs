//! From a configured engine to a running backend.

use std::path::PathBuf;

use serde::Deserialize;

use super::{Backend, DirectIo, FileBackend, PhantomBackend, RamBackend, UringBackend, scratch_file};
use crate::error::{Error, ErrorKind, Result};

/// Which engine moves the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// Ordinary memory.
    Ram,
    /// A file by `pread` and `pwrite`.
    File,
    /// A file by `io_uring`; refused if the host has none.
    IoUring,
    /// A file by `io_uring`, or by `pread` where there is none; the record says which and why.
    Auto,
    /// No bytes.
    Phantom,
}

/// How a tier stores its bytes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BackendConfig {
    /// Engine.
    pub engine: Engine,
    /// Directory of the scratch file; needed by the file engines.
    #[serde(default)]
    pub directory: Option<PathBuf>,
    /// Whether to bypass the page cache.
    #[serde(default = "DirectIo::auto")]
    pub direct: DirectIo,
}

impl BackendConfig {
    /// Ordinary memory.
    pub fn ram() -> Self {
        Self { engine: Engine::Ram, directory: None, direct: DirectIo::Auto }
    }
}

/// Opens a backend of `len_bytes` zero bytes.
pub fn open_backend(config: &BackendConfig, len_bytes: u64) -> Result<Box<dyn Backend>> {
    let scratch = || {
        let directory = config.directory.as_deref().ok_or_else(|| {
            Error::new(
                ErrorKind::Config,
                "a file backend needs a directory; set backend.directory or use engine = \"ram\"",
            )
        })?;
        scratch_file(directory, len_bytes, config.direct)
    };
    Ok(match config.engine {
        Engine::Ram => Box::new(RamBackend::new(len_bytes)?),
        Engine::Phantom => Box::new(PhantomBackend::new(len_bytes)),
        Engine::File => Box::new(FileBackend::new(scratch()?)),
        Engine::IoUring => Box::new(UringBackend::new(scratch()?).map_err(|(_, error)| error)?),
        Engine::Auto => match UringBackend::new(scratch()?) {
            Ok(backend) => Box::new(backend),
            Err((scratch, error)) => Box::new(FileBackend::new(scratch.because(&error))),
        },
    })
}
