//! Writing a file of rows.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use super::{CHUNK_HEADER_BYTES, END, MAGIC, SavedRows, VERSION, checksum, chunk_head};
use crate::backend::f32_as_bytes;
use crate::error::{Error, ErrorKind, Result};

/// A file that is being written. It is whole once `finish` has returned.
#[derive(Debug)]
pub struct RowFileWriter {
    file: BufWriter<File>,
    path: PathBuf,
    rows: u64,
    payload: Vec<u8>,
}

impl RowFileWriter {
    /// Creates the file.
    ///
    /// # Errors
    ///
    /// `Io` if it exists or cannot be created.
    pub fn create(path: &Path, saved: &SavedRows) -> Result<Self> {
        let text = serde_json::to_vec(saved)
            .map_err(|error| Error::new(ErrorKind::Config, format!("the tables cannot be described: {error}")))?;
        let file = File::options().write(true).create_new(true).open(path);
        let file =
            file.map_err(|error| Error::io("creating a file of rows", error).with_context("path", path.display()))?;
        let path = path.to_path_buf();
        let mut writer = Self { file: BufWriter::with_capacity(1 << 20, file), path, rows: 0, payload: Vec::new() };
        let mut head = MAGIC.to_vec();
        head.extend(VERSION.to_le_bytes());
        head.extend((text.len() as u32).to_le_bytes());
        head.extend(text);
        head.extend(crc32fast::hash(&head).to_le_bytes());
        writer.put(&head)?;
        Ok(writer)
    }

    /// Adds consecutive rows: weights as they are stored, state of count x S.
    pub fn write(&mut self, table: usize, first_row: u64, count: usize, weights: &[u8], state: &[f32]) -> Result<()> {
        let mut payload = std::mem::take(&mut self.payload);
        payload.clear();
        payload.extend_from_slice(weights);
        payload.extend_from_slice(f32_as_bytes(state));
        let written = self.put_chunk(table as u32, count as u32, first_row, &payload);
        self.payload = payload;
        self.rows += count as u64;
        written
    }

    /// Ends the file and waits until it is safe; gives the number of rows.
    pub fn finish(mut self) -> Result<u64> {
        self.put_chunk(END, 0, self.rows, &[])?;
        let rows = self.rows;
        let flushed = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        flushed.map_err(|error| self.failed(error))?;
        Ok(rows)
    }

    fn put_chunk(&mut self, table: u32, count: u32, first_row: u64, payload: &[u8]) -> Result<()> {
        let head = chunk_head(table, count, first_row, payload.len() as u32);
        let mut header = [0; CHUNK_HEADER_BYTES];
        header[..head.len()].copy_from_slice(&head);
        header[20..24].copy_from_slice(&checksum(&head, payload).to_le_bytes());
        self.put(&header)?;
        self.put(payload)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::io("writing a file of rows", error).with_context("path", self.path.display())
    }
}
