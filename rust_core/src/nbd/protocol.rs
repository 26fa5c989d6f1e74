//! One side of one NBD connection as a state machine: bytes in, commands and bytes out. It knows no socket and no
//! device, so that a fuzzer can talk to it.
//!
//! Source of all numbers: the protocol's own description, github.com/NetworkBlockDevice/nbd, doc/proto.md: fixed newstyle
//! negotiation, simple replies. Whatever else a client asks for is declined in the way that the description demands,
//! and what cannot be understood ends the connection.

/// Largest read or write.
pub const REQUEST_BYTES_MAX: u32 = 32 << 20;
/// Largest option of the negotiation; an export's name has 4096 bytes at most.
const OPTION_BYTES_MAX: u32 = 16 << 10;
/// Options of one negotiation; nobody needs more than a few.
const OPTIONS_MAX: u32 = 64;

const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943; // "NBDMAGIC"
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054; // "IHAVEOPT"
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

const FLAG_FIXED_NEWSTYLE: u16 = 1;
const FLAG_NO_ZEROES: u16 = 2;

const OPTION_EXPORT_NAME: u32 = 1;
const OPTION_ABORT: u32 = 2;
const OPTION_LIST: u32 = 3;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;

const REPLY_ACK: u32 = 1;
const REPLY_SERVER: u32 = 2;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 0x8000_0001;
const REPLY_INVALID: u32 = 0x8000_0003;
const REPLY_UNKNOWN_EXPORT: u32 = 0x8000_0006;
const REPLY_TOO_BIG: u32 = 0x8000_0009;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

/// Has flags, sends flush, FUA and trim, may be reached over several connections.
const TRANSMISSION_FLAGS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 8;
const COMMAND_FLAG_FUA: u16 = 1;
const BLOCK_BYTES_PREFERRED: u32 = 4096;

/// Errors of a reply, with the numbers of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NbdError {
    /// An input or output error.
    Io = 5,
    /// Out of memory.
    Memory = 12,
    /// An invalid request.
    Invalid = 22,
    /// The medium is full, or the write ends behind it.
    NoSpace = 28,
}

/// What a client asks of the device. `cookie` names the request in its reply.
#[derive(Debug, PartialEq, Eq)]
pub enum Command {
    /// Bytes come from the device.
    Read {
        /// Names the request.
        cookie: u64,
        /// First byte; the range lies inside the device.
        offset: u64,
        /// Length in bytes.
        nbytes: u32,
    },
    /// Bytes go to the device.
    Write {
        /// Names the request.
        cookie: u64,
        /// First byte; the range lies inside the device.
        offset: u64,
        /// The bytes.
        data: Vec<u8>,
        /// To be durable before it is acknowledged.
        force_unit_access: bool,
    },
    /// A range is not needed any more.
    Trim {
        /// Names the request.
        cookie: u64,
        /// First byte; the range lies inside the device.
        offset: u64,
        /// Length in bytes.
        nbytes: u32,
        /// To be durable before it is acknowledged.
        force_unit_access: bool,
    },
    /// What was acknowledged is to be durable.
    Flush {
        /// Names the request.
        cookie: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Flags,
    Options,
    Transmission,
    /// The client said goodbye: what it asked is answered, and nothing more is read.
    Ending,
    /// The connection is useless.
    Broken(&'static str),
}

/// One connection.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    len_bytes: u64,
    sends_zeroes: bool,
    options: u32,
    input: Vec<u8>,
    /// Bytes of `input` that were understood.
    taken: usize,
    output: Vec<u8>,
    /// Bytes of `output` that are gone.
    sent: usize,
}

impl Session {
    /// A new connection to a device of `len_bytes`; the greeting is in the output.
    pub fn new(len_bytes: u64) -> Self {
        let mut output = Vec::new();
        output.extend(GREETING_MAGIC.to_be_bytes());
        output.extend(OPTION_MAGIC.to_be_bytes());
        output.extend((FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES).to_be_bytes());
        Self {
            phase: Phase::Flags,
            len_bytes,
            sends_zeroes: true,
            options: 0,
            input: Vec::new(),
            taken: 0,
            output,
            sent: 0,
        }
    }

    /// Takes bytes from the client; `next_command` says what they mean.
    pub fn receive(&mut self, bytes: &[u8]) {
        if matches!(self.phase, Phase::Ending | Phase::Broken(_)) {
            return;
        }
        if self.taken > 0 {
            self.input.drain(..self.taken);
            self.taken = 0;
        }
        self.input.extend_from_slice(bytes);
    }

    /// The next command that has come in whole.
    pub fn next_command(&mut self) -> Option<Command> {
        loop {
            let before = (self.taken, self.phase);
            let command = match self.phase {
                Phase::Flags => self.flags(),
                Phase::Options => self.option(),
                Phase::Transmission => self.request(),
                Phase::Ending | Phase::Broken(_) => return None,
            };
            if command.is_some() {
                return command;
            }
            if before == (self.taken, self.phase) {
                return None;
            }
        }
    }

    /// Bytes for the client.
    pub fn output(&self) -> &[u8] {
        &self.output[self.sent..]
    }

    /// The first `nbytes` of the output are on their way.
    pub fn sent(&mut self, nbytes: usize) {
        self.sent += nbytes;
        // Seldom, so that a long output is not moved for every piece of it that leaves.
        if self.sent * 2 >= self.output.len() {
            self.output.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Whether the client said goodbye or the connection is useless: nothing more is to be read.
    pub fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Ending | Phase::Broken(_))
    }

    /// Why the connection is useless, if it is.
    pub fn refusal(&self) -> Option<&'static str> {
        if let Phase::Broken(reason) = self.phase { Some(reason) } else { None }
    }

    /// Answers a command; `data` are the bytes of a read.
    pub fn reply(&mut self, cookie: u64, outcome: Result<&[u8], NbdError>) {
        let (code, data) = match outcome {
            Ok(data) => (0, data),
            Err(error) => (error as u32, &[][..]),
        };
        self.output.extend(REPLY_MAGIC.to_be_bytes());
        self.output.extend(code.to_be_bytes());
        self.output.extend(cookie.to_be_bytes());
        self.output.extend_from_slice(data);
    }

    fn left(&self) -> &[u8] {
        &self.input[self.taken..]
    }

    fn break_off(&mut self, reason: &'static str) -> Option<Command> {
        self.phase = Phase::Broken(reason);
        self.input = Vec::new();
        self.taken = 0;
        None
    }

    fn flags(&mut self) -> Option<Command> {
        let flags = u32_at(self.left(), 0)?;
        self.taken += 4;
        if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
            return self.break_off("the client set flags that were not offered");
        }
        self.sends_zeroes = flags & u32::from(FLAG_NO_ZEROES) == 0;
        self.phase = Phase::Options;
        None
    }

    fn option(&mut self) -> Option<Command> {
        let left = self.left();
        let (magic, option, length) = (u64_at(left, 0)?, u32_at(left, 8)?, u32_at(left, 12)?);
        if magic != OPTION_MAGIC {
            return self.break_off("an option without its magic number");
        }
        if self.options >= OPTIONS_MAX {
            return self.break_off("too many options");
        }
        if length > OPTION_BYTES_MAX {
            self.answer(option, REPLY_TOO_BIG, &[]);
            return self.break_off("an option that is too long");
        }
        let data = left.get(16..16 + length as usize)?.to_vec();
        self.options += 1;
        self.taken += 16 + data.len();
        match option {
            // The option has no other way to say no.
            OPTION_EXPORT_NAME if !data.is_empty() => return self.break_off("an export of a name that is not here"),
            OPTION_EXPORT_NAME => {
                self.output.extend(self.len_bytes.to_be_bytes());
                self.output.extend(TRANSMISSION_FLAGS.to_be_bytes());
                if self.sends_zeroes {
                    self.output.extend([0; 124]);
                }
                self.phase = Phase::Transmission;
            }
            OPTION_ABORT => {
                self.answer(option, REPLY_ACK, &[]);
                self.phase = Phase::Ending;
            }
            OPTION_LIST if data.is_empty() => {
                self.answer(option, REPLY_SERVER, &0u32.to_be_bytes());
                self.answer(option, REPLY_ACK, &[]);
            }
            OPTION_LIST => self.answer(option, REPLY_INVALID, &[]),
            OPTION_INFO | OPTION_GO => match export_name(&data) {
                None => self.answer(option, REPLY_INVALID, &[]),
                Some(name) if !name.is_empty() => self.answer(option, REPLY_UNKNOWN_EXPORT, &[]),
                Some(_) => {
                    let mut export = INFO_EXPORT.to_be_bytes().to_vec();
                    export.extend(self.len_bytes.to_be_bytes());
                    export.extend(TRANSMISSION_FLAGS.to_be_bytes());
                    self.answer(option, REPLY_INFO, &export);
                    let mut sizes = INFO_BLOCK_SIZE.to_be_bytes().to_vec();
                    for size in [1, BLOCK_BYTES_PREFERRED, REQUEST_BYTES_MAX] {
                        sizes.extend(size.to_be_bytes());
                    }
                    self.answer(option, REPLY_INFO, &sizes);
                    self.answer(option, REPLY_ACK, &[]);
                    if option == OPTION_GO {
                        self.phase = Phase::Transmission;
                    }
                }
            },
            // TLS, structured replies, meta contexts, extended headers, and what nobody knows yet.
            _ => self.answer(option, REPLY_UNSUPPORTED, &[]),
        }
        None
    }

    fn answer(&mut self, option: u32, kind: u32, data: &[u8]) {
        self.output.extend(OPTION_REPLY_MAGIC.to_be_bytes());
        self.output.extend(option.to_be_bytes());
        self.output.extend(kind.to_be_bytes());
        self.output.extend((data.len() as u32).to_be_bytes());
        self.output.extend_from_slice(data);
    }

    fn request(&mut self) -> Option<Command> {
        let left = self.left();
        let (magic, flags, kind) = (u32_at(left, 0)?, u16_at(left, 4)?, u16_at(left, 6)?);
        let (cookie, offset, nbytes) = (u64_at(left, 8)?, u64_at(left, 16)?, u32_at(left, 24)?);
        if magic != REQUEST_MAGIC {
            return self.break_off("a request without its magic number");
        }
        let is_write = kind == 1;
        let mut data = Vec::new();
        if is_write {
            // Larger than what is read into memory for anybody: there is no way to go on behind it.
            if nbytes > REQUEST_BYTES_MAX {
                return self.break_off("a write that is too long");
            }
            data = left.get(28..28 + nbytes as usize)?.to_vec();
        }
        self.taken += 28 + data.len();
        let inside = offset.checked_add(u64::from(nbytes)).is_some_and(|end| end <= self.len_bytes);
        let moves = matches!(kind, 0 | 1 | 4);
        if kind == 2 {
            // Never answered, whatever its flags.
            self.phase = Phase::Ending;
            return None;
        }
        // Once offered, FUA is valid with every command; it means something where bytes are stored.
        let force_unit_access = flags & COMMAND_FLAG_FUA != 0;
        let is_too_long = kind == 0 && nbytes > REQUEST_BYTES_MAX;
        let problem = if flags & !COMMAND_FLAG_FUA != 0 || (moves && nbytes == 0) || is_too_long {
            Some(NbdError::Invalid)
        } else if moves && !inside {
            Some(if is_write { NbdError::NoSpace } else { NbdError::Invalid })
        } else {
            None
        };
        if let Some(error) = problem {
            self.reply(cookie, Err(error));
            return None;
        }
        match kind {
            0 => Some(Command::Read { cookie, offset, nbytes }),
            1 => Some(Command::Write { cookie, offset, data, force_unit_access }),
            3 => Some(Command::Flush { cookie }),
            4 => Some(Command::Trim { cookie, offset, nbytes, force_unit_access }),
            _ => {
                self.reply(cookie, Err(NbdError::Invalid));
                None
            }
        }
    }
}

/// The name in an `INFO` or `GO` option, if the option is well-formed.
fn export_name(data: &[u8]) -> Option<&[u8]> {
    let length = u32_at(data, 0)? as usize;
    let name = data.get(4..4usize.checked_add(length)?)?;
    let count = usize::from(u16_at(data, 4 + length)?);
    (data.len() == 4 + length + 2 + 2 * count).then_some(name)
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes_at(bytes, at).map(u16::from_be_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes_at(bytes, at).map(u32::from_be_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes_at(bytes, at).map(u64::from_be_bytes)
}
