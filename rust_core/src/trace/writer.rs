//! Writing a trace: to a file without a name in the same folder, which gets its name when it is whole.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::format::{
    Bags, DESCRIPTION_BYTES_MAX, Description, FORM_LENGTHS, FORM_UNIFORM, FRAME_BATCH, FRAME_END, MAGIC,
    TRACE_BAGS_MAX, Totals, VERSION, frame_crc,
};
use crate::error::{Error, ErrorKind, Result};

/// A trace that is being written. It appears under its name in `finish`; dropped before, it leaves nothing.
#[derive(Debug)]
pub struct TraceWriter {
    description: Description,
    file: Option<BufWriter<File>>,
    path: PathBuf,
    temporary: PathBuf,
    totals: Totals,
    payload: Vec<u8>,
}

impl TraceWriter {
    /// Begins a trace.
    ///
    /// # Errors
    ///
    /// `Config` if the description is not possible, `Io` if the folder cannot be written.
    pub fn create(path: &Path, description: Description) -> Result<Self> {
        description.check()?;
        let text = serde_json::to_vec(&description)
            .ok()
            .filter(|text| text.len() <= DESCRIPTION_BYTES_MAX)
            .ok_or_else(|| Error::new(ErrorKind::Config, "the description of the trace is longer than 64 MiB"))?;
        // A link is followed, as when the file is opened to be read.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        if path.file_name().is_none() || fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
            let text = format!("{} is not a file; a trace is renamed into its place when it is whole", path.display());
            return Err(Error::new(ErrorKind::Config, text));
        }
        let (temporary, file) = create_hidden(&path)
            .map_err(|error| Error::io("creating a trace", error).with_context("path", path.display()))?;
        let mut writer = Self {
            description,
            file: Some(BufWriter::with_capacity(1 << 20, file)),
            path,
            temporary,
            totals: Totals::default(),
            payload: Vec::new(),
        };
        let mut head = MAGIC.to_vec();
        head.extend(VERSION.to_le_bytes());
        head.extend((text.len() as u32).to_le_bytes());
        head.extend(text);
        let crc = crc32fast::hash(&head);
        head.extend(crc.to_le_bytes());
        writer.put(&head)?;
        Ok(writer)
    }

    /// Adds one batch: the bags of each table, in the order of the tables.
    ///
    /// # Errors
    ///
    /// `Input` if a table is missing, lengths and ids do not fit together, or an id is beyond its table; nothing
    /// of the batch is written then.
    pub fn write(&mut self, batch: &[Bags]) -> Result<()> {
        self.encode(batch)?;
        let payload = std::mem::take(&mut self.payload);
        let written = self.put_frame(FRAME_BATCH, &payload);
        self.payload = payload;
        written?;
        self.totals.batches += 1;
        for bags in batch {
            self.totals.bags += bags.lengths.len() as u64;
            self.totals.ids += bags.ids.len() as u64;
        }
        Ok(())
    }

    /// Ends the trace and gives it its name; gives what it holds.
    pub fn finish(mut self) -> Result<Totals> {
        let mut payload = Vec::with_capacity(24);
        for count in [self.totals.batches, self.totals.bags, self.totals.ids] {
            payload.extend(count.to_le_bytes());
        }
        self.put_frame(FRAME_END, &payload)?;
        let failed = |error| Error::io("finishing a trace", error).with_context("path", self.path.display());
        if let Some(mut file) = self.file.take() {
            file.flush().map_err(failed)?;
        }
        fs::rename(&self.temporary, &self.path).map_err(failed)?;
        Ok(self.totals)
    }

    fn encode(&mut self, batch: &[Bags]) -> Result<()> {
        self.payload.clear();
        let number = self.totals.batches;
        let refuse = |text: String| Err(Error::new(ErrorKind::Input, text).with_context("batch", number));
        if batch.len() != self.description.tables.len() {
            return refuse(format!(
                "a batch has bags of {} tables, the trace has {} tables",
                batch.len(),
                self.description.tables.len()
            ));
        }
        let bags: usize = batch.iter().map(|bags| bags.lengths.len()).sum();
        if bags > TRACE_BAGS_MAX {
            return refuse(format!("a batch has {bags} bags, {TRACE_BAGS_MAX} at the most; make smaller batches"));
        }
        for (table, bags) in self.description.tables.iter().zip(batch) {
            let sum: u64 = bags.lengths.iter().map(|&length| u64::from(length)).sum();
            if sum != bags.ids.len() as u64 || sum > u64::from(u32::MAX) {
                return refuse(format!(
                    "the lengths of table \"{}\" add up to {sum}, but there are {} ids (2^32 - 1 at the most)",
                    table.name,
                    bags.ids.len()
                ));
            }
            if let Some(position) = bags.ids.iter().position(|&id| id >= table.rows) {
                return refuse(format!(
                    "id {} at position {position} is beyond table \"{}\", which has {} rows",
                    bags.ids[position], table.name, table.rows
                ));
            }
            let first = bags.lengths.first().copied().unwrap_or(0);
            let uniform = bags.lengths.iter().all(|&length| length == first);
            self.payload.push(if uniform { FORM_UNIFORM } else { FORM_LENGTHS });
            self.payload.extend((bags.lengths.len() as u32).to_le_bytes());
            self.payload.extend((bags.ids.len() as u32).to_le_bytes());
            let lengths = if uniform { std::slice::from_ref(&first) } else { &bags.lengths };
            self.payload.extend(lengths.iter().flat_map(|length| length.to_le_bytes()));
            if table.id_bytes() == 4 {
                self.payload.extend(bags.ids.iter().flat_map(|&id| (id as u32).to_le_bytes()));
            } else {
                self.payload.extend(bags.ids.iter().flat_map(|id| id.to_le_bytes()));
            }
        }
        Ok(())
    }

    fn put_frame(&mut self, kind: u32, payload: &[u8]) -> Result<()> {
        self.put(&kind.to_le_bytes())?;
        self.put(&frame_crc(kind, payload).to_le_bytes())?;
        self.put(&(payload.len() as u64).to_le_bytes())?;
        self.put(payload)
    }

    /// After a failure nothing more is written, since what was is not whole.
    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(file) = &mut self.file else {
            let text = "an earlier write of this trace failed; begin again";
            return Err(Error::new(ErrorKind::Closed, text).with_context("path", self.path.display()));
        };
        let written = file.write_all(bytes);
        written.map_err(|error| {
            self.file = None;
            Error::io("writing a trace", error).with_context("path", self.path.display())
        })
    }
}

/// A new file beside `path`. What a run that was killed left behind keeps its name; another one is taken.
fn create_hidden(path: &Path) -> std::io::Result<(PathBuf, File)> {
    static SERIAL: AtomicU64 = AtomicU64::new(0);
    loop {
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let hidden = path.with_file_name(format!(".tmtrace-{}-{serial}", std::process::id()));
        match File::create_new(&hidden) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => return made.map(|file| (hidden, file)),
        }
    }
}

impl Drop for TraceWriter {
    fn drop(&mut self) {
        // After `finish` the temporary name is gone, and this finds nothing.
        let _ = fs::remove_file(&self.temporary);
    }
}
