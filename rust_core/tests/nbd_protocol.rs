//! The NBD state machine by itself: what the protocol's description demands, and whatever else may come in.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use proptest::prelude::*;
use tiermem_core::nbd::{Command, NbdError, REQUEST_BYTES_MAX, Session};

const LEN: u64 = 1 << 20;

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend((data.len() as u32).to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The data of an INFO or GO option.
fn export(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = (name.len() as u32).to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend((infos.len() as u16).to_be_bytes());
    infos.iter().for_each(|info| data.extend(info.to_be_bytes()));
    data
}

fn request(flags: u16, kind: u16, cookie: u64, offset: u64, nbytes: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(nbytes.to_be_bytes());
    bytes
}

fn take_output(session: &mut Session) -> Vec<u8> {
    let output = session.output().to_vec();
    session.sent(output.len());
    output
}

/// The kinds of the replies to options, in order.
fn reply_kinds(mut output: &[u8]) -> Vec<u32> {
    let mut kinds = Vec::new();
    while !output.is_empty() {
        assert_eq!(output[..8], 0x0003_e889_0455_65a9u64.to_be_bytes());
        kinds.push(u32::from_be_bytes(output[12..16].try_into().unwrap()));
        let length = u32::from_be_bytes(output[16..20].try_into().unwrap()) as usize;
        output = &output[20 + length..];
    }
    kinds
}

fn tell(session: &mut Session, bytes: &[u8]) -> Vec<Command> {
    session.receive(bytes);
    std::iter::from_fn(|| session.next_command()).collect()
}

fn negotiated() -> Session {
    let mut session = Session::new(LEN);
    tell(&mut session, &3u32.to_be_bytes());
    tell(&mut session, &option(7, &export("", &[])));
    assert!(!session.is_ending());
    take_output(&mut session);
    session
}

#[test]
fn the_greeting_and_go_are_those_of_fixed_newstyle() {
    let mut session = Session::new(LEN);
    assert_eq!(take_output(&mut session), b"NBDMAGICIHAVEOPT\x00\x03");
    tell(&mut session, &3u32.to_be_bytes());
    tell(&mut session, &option(7, &export("", &[3])));
    let output = take_output(&mut session);
    assert_eq!(reply_kinds(&output), [3, 3, 1], "two infos and an acknowledgement");
    // The first info: export, its size, and flags with FLUSH, FUA, TRIM and CAN_MULTI_CONN.
    assert_eq!(output[20..30], [0u8; 2].into_iter().chain(LEN.to_be_bytes()).collect::<Vec<_>>());
    assert_eq!(output[30..32], 0b1_0010_1101u16.to_be_bytes());
    assert_eq!(
        tell(&mut session, &request(0, 0, 7, 4096, 512)),
        [Command::Read { cookie: 7, offset: 4096, nbytes: 512 }]
    );
}

#[test]
fn an_old_client_goes_by_the_name_of_the_export() {
    for (flags, zeroes) in [(1u32, 124), (3, 0)] {
        let mut session = Session::new(LEN);
        take_output(&mut session);
        tell(&mut session, &flags.to_be_bytes());
        tell(&mut session, &option(1, b""));
        assert_eq!(take_output(&mut session).len(), 10 + zeroes);
        assert_eq!(tell(&mut session, &request(0, 3, 1, 0, 0)), [Command::Flush { cookie: 1 }]);
    }
}

#[test]
fn what_is_not_offered_is_declined_and_the_negotiation_goes_on() {
    let mut session = Session::new(LEN);
    take_output(&mut session);
    tell(&mut session, &3u32.to_be_bytes());
    // Start TLS, structured replies, list and set meta contexts, extended headers, and a number from the future.
    for number in [5, 8, 9, 10, 11, 4711] {
        tell(&mut session, &option(number, &[0; 8]));
        assert_eq!(reply_kinds(&take_output(&mut session)), [0x8000_0001], "option {number}");
    }
    for (number, data, expected) in [
        (3, vec![], vec![2, 1]),
        (3, vec![1], vec![0x8000_0003]),
        (6, export("", &[]), vec![3, 3, 1]),
        (6, export("other", &[]), vec![0x8000_0006]),
        (7, vec![0, 0, 0, 9, 1], vec![0x8000_0003]),
        (7, [export("", &[]), vec![0]].concat(), vec![0x8000_0003]),
        (7, export("", &[0, 1, 2, 3]), vec![3, 3, 1]),
    ] {
        tell(&mut session, &option(number, &data));
        assert_eq!(reply_kinds(&take_output(&mut session)), expected, "option {number}, {data:?}");
    }
    assert_eq!(tell(&mut session, &request(0, 3, 9, 0, 0)), [Command::Flush { cookie: 9 }]);
}

#[test]
fn goodbye_is_acknowledged_in_the_negotiation_and_answered_by_silence_later() {
    let mut session = Session::new(LEN);
    take_output(&mut session);
    tell(&mut session, &3u32.to_be_bytes());
    tell(&mut session, &option(2, &[]));
    assert_eq!(reply_kinds(session.output()), [1]);
    assert!(session.is_ending() && session.refusal().is_none());

    let mut session = negotiated();
    let both = [request(0, 0, 1, 0, 512), request(1, 2, 2, 0, 0), request(0, 0, 3, 0, 512)].concat();
    assert_eq!(tell(&mut session, &both).len(), 1, "nothing after the goodbye");
    assert!(session.is_ending() && session.refusal().is_none() && session.output().is_empty());
    session.reply(1, Ok(&[5; 512]));
    assert_eq!(session.output().len(), 16 + 512, "what was asked before is still answered");
}

#[test]
fn requests_that_the_device_cannot_serve_are_answered_with_an_error() {
    let mut session = negotiated();
    let payload = vec![1; 1024];
    for (what, bytes, expected) in [
        ("behind the end", request(0, 0, 1, LEN, 1), NbdError::Invalid),
        ("across the end", request(0, 0, 1, LEN - 1, 2), NbdError::Invalid),
        ("beyond 64 bits", request(0, 0, 1, u64::MAX, 2), NbdError::Invalid),
        ("nothing", request(0, 0, 1, 0, 0), NbdError::Invalid),
        ("too much", request(0, 0, 1, 0, REQUEST_BYTES_MAX + 1), NbdError::Invalid),
        ("a flag of structured replies", request(4, 0, 1, 0, 1), NbdError::Invalid),
        ("a full device", [request(0, 1, 1, LEN - 1, 1024), payload.clone()].concat(), NbdError::NoSpace),
        ("a write with an unknown flag", [request(2, 1, 1, 0, 1024), payload.clone()].concat(), NbdError::Invalid),
        ("a trim behind the end", request(0, 4, 1, LEN, 1), NbdError::Invalid),
        ("write zeroes", request(0, 6, 1, 0, 512), NbdError::Invalid),
        ("an unknown command", request(0, 99, 1, 0, 0), NbdError::Invalid),
    ] {
        assert_eq!(tell(&mut session, &bytes), [], "{what}");
        let output = take_output(&mut session);
        assert_eq!(output.len(), 16, "{what}");
        assert_eq!(output[..4], 0x6744_6698u32.to_be_bytes());
        assert_eq!(output[4..8], (expected as u32).to_be_bytes(), "{what}");
        assert_eq!(output[8..16], 1u64.to_be_bytes());
    }
    // FUA is valid with every command, and so is a trim of any length.
    assert_eq!(tell(&mut session, &request(1, 3, 2, 0, 0)), [Command::Flush { cookie: 2 }]);
    assert_eq!(tell(&mut session, &request(1, 0, 2, 0, 9)), [Command::Read { cookie: 2, offset: 0, nbytes: 9 }]);
    let trim = Command::Trim { cookie: 2, offset: 0, nbytes: LEN as u32, force_unit_access: true };
    assert_eq!(tell(&mut session, &request(1, 4, 2, 0, LEN as u32)), [trim]);
    // And the connection is as good as before.
    let write = [request(1, 1, 3, 512, 1024), payload.clone()].concat();
    let expected = Command::Write { cookie: 3, offset: 512, data: payload, force_unit_access: true };
    assert_eq!(tell(&mut session, &write), [expected]);
}

#[test]
fn what_cannot_be_understood_ends_the_connection_with_a_reason() {
    let mut unknown_flags = Session::new(LEN);
    tell(&mut unknown_flags, &0xffu32.to_be_bytes());
    assert!(unknown_flags.refusal().unwrap().contains("flags"));

    let mut no_magic = Session::new(LEN);
    tell(&mut no_magic, &[&3u32.to_be_bytes()[..], b"GET / HTTP/1.1\r\n\r\n"].concat());
    assert!(no_magic.refusal().unwrap().contains("magic"));

    let mut long = Session::new(LEN);
    tell(&mut long, &3u32.to_be_bytes());
    take_output(&mut long);
    tell(&mut long, &[&b"IHAVEOPT\0\0\0\x07"[..], &u32::MAX.to_be_bytes()].concat());
    assert!(long.refusal().unwrap().contains("too long"));
    assert_eq!(reply_kinds(long.output()), [0x8000_0009], "and is told so");

    let mut endless = Session::new(LEN);
    tell(&mut endless, &3u32.to_be_bytes());
    tell(&mut endless, &option(8, &[]).repeat(1000));
    assert!(endless.refusal().unwrap().contains("too many"));

    let mut elsewhere = Session::new(LEN);
    tell(&mut elsewhere, &3u32.to_be_bytes());
    tell(&mut elsewhere, &option(1, b"other"));
    assert!(elsewhere.refusal().unwrap().contains("not here"));

    let mut noise = negotiated();
    tell(&mut noise, &[0x42; 28]);
    assert!(noise.refusal().unwrap().contains("magic"));
    assert_eq!(tell(&mut noise, &request(0, 3, 1, 0, 0)), [], "nothing is understood after that");

    let mut huge = negotiated();
    tell(&mut huge, &request(0, 1, 1, 0, REQUEST_BYTES_MAX + 1));
    assert!(huge.refusal().unwrap().contains("too long"));
}

proptest! {
    /// However the bytes of a conversation are cut into pieces, the same commands and the same answers come of it.
    #[test]
    fn pieces_do_not_matter(
        requests in prop::collection::vec((0u16..7, 0u64..LEN + 10, 0u32..3000), 0..20),
        cuts in prop::collection::vec(1usize..200, 1..50),
    ) {
        let mut bytes = 3u32.to_be_bytes().to_vec();
        bytes.extend(option(8, &[]));
        bytes.extend(option(7, &export("", &[])));
        for (cookie, &(kind, offset, nbytes)) in requests.iter().enumerate() {
            bytes.extend(request(0, kind, cookie as u64, offset, nbytes));
            if kind == 1 {
                bytes.extend(vec![cookie as u8; nbytes as usize]);
            }
        }
        let mut whole = Session::new(LEN);
        let expected = tell(&mut whole, &bytes);
        let (mut cut, mut found, mut rest) = (Session::new(LEN), Vec::new(), &bytes[..]);
        for length in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, left) = rest.split_at((*length).min(rest.len()));
            found.extend(tell(&mut cut, piece));
            rest = left;
        }
        prop_assert_eq!(found, expected);
        prop_assert_eq!(cut.output(), whole.output());
    }

    /// Whatever comes in: no panic, and no command that the device could not serve.
    #[test]
    fn any_bytes_at_all(ready in any::<bool>(), bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        let mut session = if ready { negotiated() } else { Session::new(LEN) };
        for command in tell(&mut session, &bytes) {
            if let Command::Read { offset, nbytes, .. } | Command::Trim { offset, nbytes, .. } = command {
                prop_assert!(nbytes > 0 && offset + u64::from(nbytes) <= LEN);
            }
        }
        prop_assert!(session.output().len() < 1 << 20);
    }
}
