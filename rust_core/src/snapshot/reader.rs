//! Reading a file of rows.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::{CHUNK_HEADER_BYTES, END, HEADER_BYTES_MAX, MAGIC, SavedRows, VERSION, checksum};
use crate::error::{Error, ErrorKind, Result};

/// A file that is being read. Every chunk is checked before anything of it is handed out.
#[derive(Debug)]
pub struct RowFileReader {
    saved: SavedRows,
    file: BufReader<File>,
    path: PathBuf,
    file_bytes: u64,
    offset: u64,
    rows: u64,
}

/// Consecutive rows of one table.
pub struct RowRun {
    /// Table number.
    pub table: usize,
    /// First row.
    pub first_row: u64,
    /// Number of rows.
    pub count: usize,
    payload: Vec<u8>,
    weight_bytes: usize,
}

impl RowRun {
    /// Weights as they are stored.
    pub fn weights(&self) -> &[u8] {
        &self.payload[..self.weight_bytes]
    }

    /// count x S.
    pub fn state(&self) -> Vec<f32> {
        let (floats, _) = self.payload[self.weight_bytes..].as_chunks();
        floats.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
    }
}

impl RowFileReader {
    /// Opens a file and reads what it holds.
    ///
    /// # Errors
    ///
    /// `Io` if the file cannot be read, `Corruption` if it is no file of rows or is damaged, `Unsupported` if it has
    /// another version.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |error| Error::io("opening a file of rows", error).with_context("path", path.display());
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if !metadata.is_file() {
            return Err(Error::new(ErrorKind::Config, format!("{} is not a file", path.display())));
        }
        let file = BufReader::with_capacity(1 << 20, File::open(path).map_err(failed)?);
        let saved = SavedRows { tables: Vec::new(), steps: 0 };
        let file_bytes = metadata.len();
        let mut reader = Self { saved, file, path: path.to_path_buf(), file_bytes, offset: 0, rows: 0 };
        reader.saved = reader.read_header()?;
        Ok(reader)
    }

    /// What the file holds.
    pub fn saved(&self) -> &SavedRows {
        &self.saved
    }

    /// The next rows, or nothing behind the last.
    ///
    /// # Errors
    ///
    /// `Corruption` if the file was cut short or changed; the message names the file and the offset.
    pub fn read(&mut self) -> Result<Option<RowRun>> {
        let begin = self.offset;
        let mut header = [0; CHUNK_HEADER_BYTES];
        self.fill(&mut header)?;
        let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (table, count, nbytes, crc) = (number(0), number(4) as usize, number(16) as usize, number(20));
        let first_row = u64::from(number(8)) | u64::from(number(12)) << 32;
        if nbytes as u64 > self.file_bytes - self.offset {
            return Err(self.damaged(begin, "a chunk is longer than the rest of the file: it was cut short or changed"));
        }
        let mut payload = vec![0; nbytes];
        self.fill(&mut payload)?;
        if checksum(&header[..20], &payload) != crc || header[24..] != [0; 8] {
            return Err(self.damaged(begin, "the checksum of a chunk does not fit its bytes: the file was changed"));
        }
        if table == END {
            let is_whole = first_row == self.rows && self.offset == self.file_bytes;
            return if is_whole {
                Ok(None)
            } else {
                Err(self
                    .damaged(begin, "the end of the file is not where it says, or its count is not that of its rows"))
            };
        }
        let shape = self.saved.tables.get(table as usize);
        let fits = shape.is_some_and(|shape| {
            first_row.checked_add(count as u64).is_some_and(|end| end <= shape.rows)
                && shape
                    .state_floats
                    .checked_mul(size_of::<f32>())
                    .and_then(|state_bytes| state_bytes.checked_add(shape.weight_bytes))
                    .and_then(|row_bytes| row_bytes.checked_mul(count))
                    == Some(nbytes)
        });
        let Some(shape) = shape.filter(|_| fits) else {
            return Err(self.damaged(begin, "a chunk does not fit its table"));
        };
        let weight_bytes = count * shape.weight_bytes;
        self.rows += count as u64;
        Ok(Some(RowRun { table: table as usize, first_row, count, payload, weight_bytes }))
    }

    fn read_header(&mut self) -> Result<SavedRows> {
        let mut head = vec![0; MAGIC.len() + 8];
        if self.file_bytes < head.len() as u64 {
            return Err(self.damaged(0, "the file is too short to be a file of rows of tiermem"));
        }
        self.fill(&mut head)?;
        if head[..MAGIC.len()] != MAGIC[..] {
            return Err(self.damaged(0, "this is not a file of rows of tiermem"));
        }
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let (version, length) = (number(MAGIC.len()), number(MAGIC.len() + 4) as usize);
        if version != VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the file of rows has version {version}; this build reads version {VERSION}"),
            )
            .with_context("path", self.path.display()));
        }
        if length > HEADER_BYTES_MAX || (length + 4) as u64 > self.file_bytes - self.offset {
            return Err(self.damaged(0, "the header is longer than the file: it was cut short or changed"));
        }
        let mut text = vec![0; length];
        self.fill(&mut text)?;
        let mut crc = [0; 4];
        self.fill(&mut crc)?;
        head.extend(&text);
        if crc32fast::hash(&head) != u32::from_le_bytes(crc) {
            return Err(self.damaged(0, "the checksum of the header does not fit its bytes: the file was changed"));
        }
        serde_json::from_slice(&text).map_err(|_| self.damaged(0, "the header does not describe tables"))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        if bytes.len() as u64 > self.file_bytes - self.offset {
            return Err(self.damaged(self.offset, "the file ends too early: it was cut short"));
        }
        self.file.read_exact(bytes).map_err(|error| {
            Error::io("reading a file of rows", error)
                .with_context("path", self.path.display())
                .with_context("offset", self.offset)
        })?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn damaged(&self, offset: u64, what: &str) -> Error {
        Error::new(ErrorKind::Corruption, what.to_owned())
            .with_context("path", self.path.display())
            .with_context("offset", offset)
    }
}
