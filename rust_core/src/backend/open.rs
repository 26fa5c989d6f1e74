//! From a configured engine to a running backend.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Backend, DataFile, DirectIo, FileBackend, PhantomBackend, RamBackend, UringBackend};
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

/// How `io_uring` learns that a request is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CompletionMode {
    /// The device interrupts.
    #[default]
    Interrupt,
    /// Whoever waits asks the device until it is done, which takes a processor and saves the interrupt
    /// (`IORING_SETUP_IOPOLL`); by interrupt where kernel, filesystem or driver cannot, and the record says why.
    Polling,
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
    /// Requests that `io_uring` has in flight at most; 1 to 4096.
    #[serde(default = "io_depth")]
    pub io_depth: u32,
    /// How `io_uring` learns that a request is done.
    #[serde(default)]
    pub completion: CompletionMode,
}

/// Assumed: more than any drive needs to be busy.
fn io_depth() -> u32 {
    256
}

impl BackendConfig {
    /// An engine with everything else as it comes.
    pub fn new(engine: Engine) -> Self {
        let completion = CompletionMode::default();
        Self { engine, directory: None, direct: DirectIo::Auto, io_depth: io_depth(), completion }
    }

    /// Ordinary memory.
    pub fn ram() -> Self {
        Self::new(Engine::Ram)
    }
}

/// Opens a backend of `len_bytes` zero bytes.
pub fn open_backend(config: &BackendConfig, len_bytes: u64) -> Result<Box<dyn Backend>> {
    match config.engine {
        Engine::Ram => Ok(Box::new(RamBackend::new(len_bytes)?)),
        Engine::Phantom => Ok(Box::new(PhantomBackend::new(len_bytes))),
        Engine::File | Engine::IoUring | Engine::Auto => {
            let directory = config.directory.as_deref().ok_or_else(|| {
                let message = "a file backend needs a directory; set backend.directory or use engine = \"ram\"";
                Error::new(ErrorKind::Config, message)
            })?;
            over_file(config, DataFile::scratch(directory, len_bytes, config.direct)?)
        }
    }
}

/// Opens a backend over an existing file, as long as it is.
pub fn open_file(config: &BackendConfig, path: &Path) -> Result<Box<dyn Backend>> {
    over_file(config, DataFile::open(path, config.direct)?)
}

fn over_file(config: &BackendConfig, data: DataFile) -> Result<Box<dyn Backend>> {
    if !(1..=4096).contains(&config.io_depth) {
        let message = format!("io_depth lies between 1 and 4096, got {}", config.io_depth);
        return Err(Error::new(ErrorKind::Config, message));
    }
    let on_ring = |data| UringBackend::new(data, config.io_depth, config.completion);
    match config.engine {
        Engine::IoUring => Ok(Box::new(on_ring(data).map_err(|refusal| refusal.1)?)),
        Engine::Auto => Ok(match on_ring(data) {
            Ok(backend) => Box::new(backend),
            Err(refusal) => {
                let (mut data, refusal) = *refusal;
                data.note_fallback(&refusal.to_string());
                Box::new(FileBackend::new(data))
            }
        }),
        Engine::File | Engine::Ram | Engine::Phantom => Ok(Box::new(FileBackend::new(data))),
    }
}
