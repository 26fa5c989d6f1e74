//! Reading a trace, batch by batch.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::format::{
    Bags, DESCRIPTION_BYTES_MAX, Description, FORM_LENGTHS, FORM_UNIFORM, FRAME_BATCH, FRAME_END, FRAME_HEADER_BYTES,
    MAGIC, TRACE_BAGS_MAX, Totals, TraceTable, VERSION, frame_crc,
};
use crate::error::{Error, ErrorKind, Result};

/// A trace that is being read. Every frame is checked before anything of it is handed out.
#[derive(Debug)]
pub struct TraceReader {
    description: Description,
    file: BufReader<File>,
    path: PathBuf,
    file_bytes: u64,
    offset: u64,
    totals: Totals,
    done: bool,
    payload: Vec<u8>,
}

impl TraceReader {
    /// Opens a trace and reads its description.
    ///
    /// # Errors
    ///
    /// `Io` if the file cannot be read, `Corruption` if it is no trace or is damaged, `Unsupported` if it has
    /// another version.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |error| Error::io("opening a trace", error).with_context("path", path.display());
        // Before it is opened: opening a pipe would wait for a writer.
        let metadata = std::fs::metadata(path).map_err(failed)?;
        if !metadata.is_file() {
            return Err(Error::new(ErrorKind::Config, format!("{} is not a file", path.display())));
        }
        let file = File::open(path).map_err(failed)?;
        let mut reader = Self {
            description: Description { tables: Vec::new(), origin: String::new() },
            file: BufReader::with_capacity(1 << 20, file),
            path: path.to_path_buf(),
            file_bytes: metadata.len(),
            offset: 0,
            totals: Totals::default(),
            done: false,
            payload: Vec::new(),
        };
        reader.read_description()?;
        Ok(reader)
    }

    /// The tables and the origin.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Reads the next batch into `batch`; gives whether there was one.
    ///
    /// # Errors
    ///
    /// `Corruption` if the file was cut short or changed; the message names the offset of the frame.
    pub fn read(&mut self, batch: &mut Vec<Bags>) -> Result<bool> {
        if self.done {
            return Ok(false);
        }
        let frame = self.offset;
        let mut header = [0; FRAME_HEADER_BYTES];
        self.fill(&mut header)?;
        let kind = u32_at(&header, 0);
        let crc = u32_at(&header, 4);
        let bytes = u64::from(u32_at(&header, 8)) | u64::from(u32_at(&header, 12)) << 32;
        if bytes > self.file_bytes - self.offset {
            return Err(self.damaged(frame, "a frame is longer than the rest of the file: it was cut short or changed"));
        }
        let mut payload = std::mem::take(&mut self.payload);
        payload.resize(bytes as usize, 0);
        self.fill(&mut payload)?;
        if frame_crc(kind, &payload) != crc {
            return Err(self.damaged(frame, "the checksum of a frame does not fit its bytes: the file was changed"));
        }
        let read = match kind {
            FRAME_BATCH => self.decode(&payload, batch).ok_or("a batch does not have the form of a batch"),
            FRAME_END => self.end(&payload).ok_or("the counts at the end are not those of the frames"),
            _ => Err("a frame is of an unknown kind"),
        };
        self.payload = payload;
        read.map_err(|text| self.damaged(frame, text))
    }

    fn read_description(&mut self) -> Result<()> {
        let mut head = vec![0; MAGIC.len() + 8];
        if self.file_bytes < head.len() as u64 {
            return Err(self.damaged(0, "the file is too short to be a trace of tiermem"));
        }
        self.fill(&mut head)?;
        if head[..MAGIC.len()] != MAGIC {
            return Err(self.damaged(0, "this is not a trace of tiermem; make one with `tiermem trace import`"));
        }
        let version = u32_at(&head, MAGIC.len());
        if version != VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("the trace has version {version}; this build reads version {VERSION}"),
            )
            .with_context("path", self.path.display()));
        }
        let length = u32_at(&head, MAGIC.len() + 4) as usize;
        if length > DESCRIPTION_BYTES_MAX || (length + 4) as u64 > self.file_bytes - self.offset {
            return Err(self.damaged(0, "the description is longer than the file: it was cut short or changed"));
        }
        let mut text = vec![0; length];
        self.fill(&mut text)?;
        let mut crc = [0; 4];
        self.fill(&mut crc)?;
        head.extend(&text);
        if crc32fast::hash(&head) != u32::from_le_bytes(crc) {
            return Err(self.damaged(0, "the checksum of the description does not fit its bytes: the file was changed"));
        }
        let description = serde_json::from_slice::<Description>(&text)
            .map_err(|error| self.damaged(0, &format!("the description is not one: {error}")))?;
        description.check()?;
        self.description = description;
        Ok(())
    }

    fn decode(&mut self, payload: &[u8], batch: &mut Vec<Bags>) -> Option<bool> {
        batch.resize_with(self.description.tables.len(), Bags::default);
        let mut rest = payload;
        let mut bags_left = TRACE_BAGS_MAX;
        for (table, bags) in self.description.tables.iter().zip(batch.iter_mut()) {
            rest = decode_bags(table, rest, bags_left, bags)?;
            bags_left -= bags.lengths.len();
            self.totals.bags += bags.lengths.len() as u64;
            self.totals.ids += bags.ids.len() as u64;
        }
        self.totals.batches += 1;
        rest.is_empty().then_some(true)
    }

    fn end(&mut self, payload: &[u8]) -> Option<bool> {
        let Totals { batches, bags, ids } = self.totals;
        let expected: Vec<u8> = [batches, bags, ids].iter().flat_map(|count| count.to_le_bytes()).collect();
        self.done = true;
        (payload == expected && self.offset == self.file_bytes).then_some(false)
    }

    fn fill(&mut self, out: &mut [u8]) -> Result<()> {
        self.file.read_exact(out).map_err(|error| {
            if error.kind() == std::io::ErrorKind::UnexpectedEof {
                self.damaged(self.offset, "the file ends within a trace: it was cut short")
            } else {
                Error::io("reading a trace", error).with_context("path", self.path.display())
            }
        })?;
        self.offset += out.len() as u64;
        Ok(())
    }

    fn damaged(&self, offset: u64, text: &str) -> Error {
        Error::new(ErrorKind::Corruption, text).with_context("path", self.path.display()).with_context("offset", offset)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Splits off so many bytes.
fn take<'a>(rest: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let (head, tail) = rest.split_at_checked(bytes)?;
    *rest = tail;
    Some(head)
}

/// The bags of one table; gives what follows them.
fn decode_bags<'a>(table: &TraceTable, mut rest: &'a [u8], bags_max: usize, bags: &mut Bags) -> Option<&'a [u8]> {
    let head = take(&mut rest, 9)?;
    let (count, ids) = (u32_at(head, 1) as usize, u32_at(head, 5) as usize);
    if count > bags_max {
        return None;
    }
    bags.lengths.clear();
    match head[0] {
        FORM_UNIFORM => {
            let length = u32_at(take(&mut rest, 4)?, 0);
            if count as u64 * u64::from(length) != ids as u64 {
                return None;
            }
            bags.lengths.resize(count, length);
        }
        FORM_LENGTHS => {
            bags.lengths.extend(take(&mut rest, count.checked_mul(4)?)?.chunks_exact(4).map(|at| u32_at(at, 0)));
        }
        _ => return None,
    }
    let sum: u64 = bags.lengths.iter().map(|&length| u64::from(length)).sum();
    let width = table.id_bytes();
    let bytes = take(&mut rest, ids.checked_mul(width)?)?;
    bags.ids.clear();
    if width == 4 {
        bags.ids.extend(bytes.chunks_exact(4).map(|at| u64::from(u32_at(at, 0))));
    } else {
        bags.ids.extend(bytes.chunks_exact(8).map(|at| u64::from(u32_at(at, 0)) | u64::from(u32_at(at, 4)) << 32));
    }
    let valid = sum == ids as u64 && bags.ids.iter().all(|&id| id < table.rows);
    valid.then_some(rest)
}
