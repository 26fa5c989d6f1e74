//! One error type: a kind to match on, a sentence to read, context to debug.

use std::error::Error as StdError;
use std::fmt;

/// What went wrong, coarse enough to decide what to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A configuration value is not allowed.
    Config,
    /// An argument of a call is not allowed (an id out of range, a wrong length).
    Input,
    /// A budget, a device or staging memory is too small for what was asked.
    Capacity,
    /// The operating system or a device refused or failed an operation.
    Io,
    /// The medium behind a file backend is full.
    NoSpace,
    /// This host or this filesystem cannot do what was asked for by name.
    Unsupported,
    /// Bytes that were read are not the bytes that were written.
    Corruption,
    /// The object was closed, or an earlier failure made its state unusable.
    Closed,
}

impl ErrorKind {
    /// Every kind; the binding's test walks this list.
    pub const ALL: [Self; 8] = [
        Self::Config,
        Self::Input,
        Self::Capacity,
        Self::Io,
        Self::NoSpace,
        Self::Unsupported,
        Self::Corruption,
        Self::Closed,
    ];
}

/// An error of this crate. `Display` gives one sentence with its context in parentheses.
pub struct Error {
    kind: ErrorKind,
    message: String,
    context: Vec<(&'static str, String)>,
    source: Option<std::io::Error>,
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A new error; `message` states the value and then the fix.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), context: Vec::new(), source: None }
    }

    /// An operating-system error during `operation`, classified by its errno.
    pub fn io(operation: &str, source: std::io::Error) -> Self {
        let kind = match source.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => ErrorKind::NoSpace,
            Some(libc::ENOSYS | libc::EOPNOTSUPP) => ErrorKind::Unsupported,
            _ => ErrorKind::Io,
        };
        Self { source: Some(source), ..Self::new(kind, format!("{operation} failed")) }
    }

    /// Adds one fact that helps to find the cause.
    #[must_use]
    pub fn with_context(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        self.context.push((key, value.to_string()));
        self
    }

    /// A fact that was added, by its name.
    pub fn context(&self, key: &str) -> Option<&str> {
        self.context.iter().find(|(name, _)| *name == key).map(|(_, value)| value.as_str())
    }

    /// The kind to match on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The errno of the operating system, where one is known.
    pub fn raw_os_error(&self) -> Option<i32> {
        self.source.as_ref().and_then(std::io::Error::raw_os_error)
    }

    /// A copy for a second reader; the source survives as its errno or its text.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self {
            kind: self.kind,
            message: self.message.clone(),
            context: self.context.clone(),
            source: self.source.as_ref().map(|source| {
                source.raw_os_error().map_or_else(
                    || std::io::Error::new(source.kind(), source.to_string()),
                    std::io::Error::from_raw_os_error,
                )
            }),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(source) = &self.source {
            write!(f, ": {source}")?;
        }
        for (position, (key, value)) in self.context.iter().enumerate() {
            let lead = if position == 0 { " (" } else { ", " };
            write!(f, "{lead}{key}={value}")?;
        }
        if !self.context.is_empty() {
            f.write_str(")")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_no_space_and_the_sentence_carries_the_context() {
        let error = Error::io("writing a block", std::io::Error::from_raw_os_error(libc::ENOSPC))
            .with_context("offset", 4096)
            .with_context("path", "/tmp/x");
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        let text = error.to_string();
        assert!(text.starts_with("writing a block failed: "), "{text}");
        assert!(text.ends_with("(offset=4096, path=/tmp/x)"), "{text}");
        assert_eq!(error.duplicate().to_string(), text);
    }
}
