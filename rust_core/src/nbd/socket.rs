//! A unix socket that only its owner can connect to, and that is gone when its server is.

use std::io::ErrorKind as Kind;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};

/// Distinguishes the directories of one process.
static NEXT: AtomicU64 = AtomicU64::new(0);

pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode: whoever may have taken the name since keeps it.
    identity: (u64, u64),
}

impl Socket {
    /// Made in a directory of its own and moved into place with its final mode: at no time can anybody else connect.
    pub(super) fn bind(path: &Path) -> Result<Self> {
        remove_if_dead(path)?;
        let failed =
            |doing: &str, error: std::io::Error| Error::io(doing, error).with_context("socket", path.display());
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Error::new(ErrorKind::Config, "the path of a socket ends with its name")
                .with_context("socket", path.display()));
        };
        let nanos = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.subsec_nanos());
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let private = directory.join(format!(".tiermem-{}-{number}-{nanos:x}", std::process::id()));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&private)
            .map_err(|error| failed("making a directory for a socket", error))?;
        let made = private.join(name);
        let bound = Self::bind_at(&made, path);
        // Empty by now, unless binding failed half-way.
        let _ = std::fs::remove_file(&made);
        let _ = std::fs::remove_dir(&private);
        bound.map_err(|error| {
            let too_long = error.kind() == Kind::InvalidInput;
            let error = failed("listening on a socket", error);
            if too_long {
                let message =
                    "the path of the socket is too long (108 bytes with a directory of about 30); use a shorter one";
                return Error::new(ErrorKind::Config, message).with_context("socket", path.display());
            }
            error
        })
    }

    fn bind_at(made: &Path, path: &Path) -> std::io::Result<Self> {
        let listener = UnixListener::bind(made)?;
        std::fs::set_permissions(made, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        match renameat_with(CWD, made, CWD, path, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            // Filesystems without that flag: the race is with somebody who binds the same name right now.
            Err(Errno::INVAL | Errno::NOSYS) => std::fs::rename(made, path)?,
            Err(error) => return Err(error.into()),
        }
        let found = std::fs::symlink_metadata(path)?;
        Ok(Self { listener, path: path.to_owned(), identity: (found.dev(), found.ino()) })
    }

    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// The next client that has called, if one has.
    pub(super) fn accept(&self) -> Result<Option<UnixStream>> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(true).map_err(|error| Error::io("accepting a client", error))?;
                    return Ok(Some(stream));
                }
                Err(error) if matches!(error.kind(), Kind::Interrupted | Kind::ConnectionAborted) => {}
                Err(error) if error.kind() == Kind::WouldBlock => return Ok(None),
                Err(error) => return Err(Error::io("accepting a client", error)),
            }
        }
    }
}

/// A socket that nobody answers is what a killed server left behind.
fn remove_if_dead(path: &Path) -> Result<()> {
    let taken = |why: &str| {
        Err(Error::new(ErrorKind::Config, format!("{why}; use another path or remove it"))
            .with_context("socket", path.display()))
    };
    match std::fs::symlink_metadata(path) {
        Err(_) => Ok(()),
        Ok(found) if !found.file_type().is_socket() => taken("a file of that name exists and is no socket"),
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == Kind::ConnectionRefused => std::fs::remove_file(path)
                .map_err(|error| Error::io("removing a dead socket", error).with_context("socket", path.display())),
            _ => taken("another server listens on that socket"),
        },
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let is_ours =
            std::fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if is_ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
