//! The walk, on files built by hand.

use super::*;

fn sealed(mut body: Vec<u8>) -> Vec<u8> {
    body.push(OPCODE_END);
    let crc = CRC64.checksum(&body);
    body.extend_from_slice(&crc.to_le_bytes());
    body
}

fn string(out: &mut Vec<u8>, s: &[u8]) {
    out.push(s.len() as u8);
    out.extend_from_slice(s);
}

/// One of each type that a server of this machine does not write by itself.
fn example() -> Vec<u8> {
    let mut b = b"REDIS0012".to_vec();
    b.push(250);
    string(&mut b, b"redis-ver");
    string(&mut b, b"7.4.1");
    b.extend([250, 5]);
    b.extend(b"ctime");
    b.extend([0xc2, 1, 0, 0, 0]); // integer of 4 bytes
    b.extend([247, 0x81, 1, 2, 3, 4, 5, 6, 7, 8, 2, 1, 3, 0, 0, 0, 0, 5, 1, b'x', 0]); // module's auxiliary value
    b.extend([245, 3]);
    b.extend(b"lib");
    b.extend([254, 0, 251, 4, 1]);
    b.extend([252, 1, 2, 3, 4, 5, 6, 7, 8, 249, 7, 0]); // expiry, frequency, string
    string(&mut b, b"key");
    b.extend([0xc3, 3, 20, 1, 2, 3]); // compressed
    b.extend([248, 5, 24]); // idle time, hash whose fields expire
    string(&mut b, b"hash");
    b.extend([0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1, b'f', 1, b'v', 9, 1, b'g', 1, b'w']);
    b.push(25);
    string(&mut b, b"hash2");
    b.extend([0, 0, 0, 0, 0, 0, 0, 0]);
    string(&mut b, b"listpack");
    b.push(7); // module's value
    string(&mut b, b"mod");
    b.extend([0x81, 1, 2, 3, 4, 5, 6, 7, 8, 1, 5, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    b.extend([254, 9, 3]); // database 9, sorted set of old
    string(&mut b, b"z");
    b.extend([3, 1, b'a', 3, b'1', b'.', b'5', 1, b'b', 255, 1, b'c', 253]);
    b.push(15); // stream of the first version, one group, one consumer
    string(&mut b, b"s");
    b.extend([1, 1, b'n', 2, b'l', b'p', 1, 1, 1, 1, 1, b'g', 1, 1, 1]);
    b.extend([0u8; 24]);
    b.extend([1, 1, 1, b'c', 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    b.extend([0u8; 16]);
    sealed(b)
}

fn walked(bytes: &[u8]) -> Result<(Report, Vec<u8>), TapError> {
    let mut stored = Vec::new();
    let report = store(bytes, &mut stored)?;
    Ok((report, stored))
}

#[test]
fn every_type_is_passed_over_and_counted() {
    let bytes = example();
    let (report, stored) = walked(&bytes).unwrap();
    assert_eq!(stored, bytes);
    assert_eq!((report.version, report.length, report.mark), (12, bytes.len() as u64, false));
    let databases = report.databases.unwrap();
    assert_eq!((databases[&0].keys(), databases[&0].expires), (4, 1));
    assert_eq!((databases[&9].keys(), databases[&9].expires), (2, 0));
    assert_eq!(report.functions.unwrap().count, 1);
    assert_eq!((report.aux["redis-ver"].as_str(), report.aux["ctime"].as_str()), ("7.4.1", "1"));
}

#[test]
fn the_replication_mark_is_cut_off_and_nothing_else_is() {
    let bytes = example();
    let mark = b"0123456789abcdef0123456789abcdef01234567";
    let (report, stored) = walked(&[&bytes[..], mark].concat()).unwrap();
    assert!(report.mark && stored == bytes);
    for behind in [&b"x"[..], &mark[..39], &[mark, &b"0"[..]].concat(), &[0; 40], &[b'z'; 40]] {
        assert!(matches!(walked(&[&bytes[..], behind].concat()), Err(TapError::Format(_))), "{behind:?}");
    }
}

#[test]
fn a_cut_or_a_flipped_bit_anywhere_is_refused() {
    let bytes = example();
    for end in 0..bytes.len() {
        assert!(walked(&bytes[..end]).is_err(), "cut at {end}");
    }
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            assert!(walked(&flipped).is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn without_a_checksum_it_is_taken_and_said() {
    let mut bytes = example();
    let at = bytes.len() - 8;
    bytes[at..].fill(0);
    let (report, stored) = walked(&bytes).unwrap();
    assert!(!report.checksum && stored == bytes);
}

/// An RDB with a type that is not known; the end is found from the other side.
#[test]
fn the_end_behind_an_unknown_type() {
    let mut body = b"REDIS0099".to_vec();
    body.extend([254, 0, 99, 1, b'k']);
    body.extend((0..100_000u32).flat_map(u32::to_le_bytes));
    let bytes = sealed(body);
    let mark = [b'f'; MARK_BYTES];
    for (input, marked) in [(bytes.clone(), false), ([&bytes[..], &mark].concat(), true)] {
        let (report, stored) = walked(&input).unwrap();
        assert!(stored == bytes && report.mark == marked && report.databases.is_none() && report.checksum);
        assert_eq!(report.length, bytes.len() as u64);
        for cut in 1..60 {
            let cut_off = input.len() - cut;
            // What is left when exactly the mark is missing is the RDB itself.
            let whole = cut_off == bytes.len();
            assert_eq!(walked(&input[..cut_off]).is_ok(), whole, "{cut} bytes cut off");
        }
    }
    let mut flipped = bytes.clone();
    flipped[5000] ^= 1;
    assert!(walked(&flipped).is_err());
    let mut none = bytes;
    let at = none.len() - 8;
    none[at..].fill(0);
    let (report, stored) = walked(&[&none[..], &mark].concat()).unwrap();
    assert!(!report.checksum && report.mark && stored == none);
}

#[test]
fn a_claimed_length_costs_nothing() {
    let mut bytes = b"REDIS0011".to_vec();
    bytes.extend([0, 0x81, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    bytes.extend([7; 100]);
    assert!(matches!(walked(&bytes), Err(TapError::Short)));
    assert!(matches!(walked(b"NOAUTH Authentication required."), Err(TapError::Format(_))));
    assert!(matches!(walked(b"REDIS0003"), Err(TapError::Format(_))));
}

#[test]
fn sweep_dumps() {
    let fuzz = crate::base::fuzz::Fuzz::of("rdb").seed(example());
    let words: [&[u8]; 8] = [b"REDIS0012", b"\xfe", b"\xff", b"\xc3", b"\x81", b"\x80", b"\xfa", &[0; 4]];
    fuzz.words(&words).run(|bytes| {
        // Without a checksum as well: it finds every change that the walk is to be tried with.
        let mut unsummed = bytes.to_vec();
        let end = unsummed.len().saturating_sub(8);
        unsummed[end..].fill(0);
        for bytes in [bytes, &unsummed] {
            if let Ok((report, stored)) = walked(bytes) {
                assert!(bytes.starts_with(&stored) && report.length == stored.len() as u64);
                let _ = (report.keys(), report.content());
            }
        }
    });
}
