//! Any conversation with the NBD state machine: no panic, no command that the device could not serve, and no more
//! output than the input accounts for. The first byte says how the rest is cut into pieces.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tiermem_core::nbd::{Command, REQUEST_BYTES_MAX, Session};

const LEN: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, rest)) = bytes.split_first() else { return };
    let mut session = Session::new(LEN);
    if first & 1 == 1 {
        // Past the negotiation, which a fuzzer finds slowly.
        session.receive(b"\0\0\0\x03IHAVEOPT\0\0\0\x07\0\0\0\x06\0\0\0\0\0\0");
        assert!(session.next_command().is_none() && session.refusal().is_none());
        session.sent(session.output().len());
    }
    for piece in rest.chunks(1 + usize::from(first >> 1)) {
        session.receive(piece);
        while let Some(command) = session.next_command() {
            let (cookie, nbytes) = match &command {
                Command::Read { cookie, offset, nbytes } | Command::Trim { cookie, offset, nbytes, .. } => {
                    assert!(*nbytes > 0 && *nbytes <= REQUEST_BYTES_MAX && offset + u64::from(*nbytes) <= LEN);
                    (*cookie, 0)
                }
                Command::Write { cookie, offset, data, .. } => {
                    assert!(!data.is_empty() && offset + data.len() as u64 <= LEN);
                    (*cookie, data.len())
                }
                Command::Flush { cookie } => (*cookie, 0),
            };
            assert!(nbytes <= rest.len());
            session.reply(cookie, Ok(&[]));
        }
    }
    assert!(session.output().len() <= 18 + 64 * (rest.len() + 28));
});
