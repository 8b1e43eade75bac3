//! Authenticated answers of servers of time: Network Time Security (RFC 8915), without I/O. Section numbers are of that document.
//!
//! Over TLS a server gives keys and cookies (section 4). Each question then shows one cookie, which tells the server the keys again,
//! and question and answer are authenticated by them (section 5). The algorithm is AEAD_AES_SIV_CMAC_256 (RFC 5297), which all
//! servers have to know.

use super::ntp::{LENGTH, Useless, question as plain};
use aes_siv::KeyInit;
use aes_siv::siv::Aes128Siv;

/// What TLS negotiates: the application's protocol, and how keys are taken out of the connection (4, 4.2).
pub const PROTOCOL: &[u8] = b"ntske/1";
/// Label of the keys.
pub const LABEL: &[u8] = b"EXPORTER-network-time-security";
/// Port of the exchange of keys.
pub const PORT: u16 = 4460;
/// Most bytes of a server's answer over TLS.
pub const MAX_ANSWER: usize = 16 << 10;

const NTP_4: u16 = 0;
const AES_SIV: u16 = 15;
const COOKIES: usize = 8;
const MAX_COOKIE: usize = 1024;
/// Kinds of records (4.1); the highest bit says that whoever does not know it must not go on.
mod record {
    pub(super) const END: u16 = 0;
    pub(super) const NEXT_PROTOCOL: u16 = 1;
    pub(super) const ERROR: u16 = 2;
    pub(super) const WARNING: u16 = 3;
    pub(super) const ALGORITHM: u16 = 4;
    pub(super) const COOKIE: u16 = 5;
    pub(super) const SERVER: u16 = 6;
    pub(super) const PORT: u16 = 7;
    pub(super) const CRITICAL: u16 = 0x8000;
}
/// Kinds of extension fields (5).
mod field {
    pub(super) const UNIQUE: u16 = 0x0104;
    pub(super) const COOKIE: u16 = 0x0204;
    pub(super) const AUTHENTICATOR: u16 = 0x0404;
}

/// Context of the keys of one direction (5.1).
pub fn context(to_client: bool) -> [u8; 5] {
    let ([a, b], [c, d]) = (NTP_4.to_be_bytes(), AES_SIV.to_be_bytes());
    [a, b, c, d, u8::from(to_client)]
}

/// Keys of one session.
#[derive(Clone)]
pub struct Keys {
    /// Of questions.
    pub to_server: [u8; 32],
    /// Of answers.
    pub to_client: [u8; 32],
}

/// What a server gave over TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    /// One for each question.
    pub cookies: Vec<Vec<u8>>,
    /// Where to ask, as text, if it is not where the keys came from.
    pub server: Option<String>,
    /// Port to ask, if it is not 123.
    pub port: Option<u16>,
}

fn put(bytes: &mut Vec<u8>, kind: u16, body: &[u8]) {
    bytes.extend(kind.to_be_bytes());
    bytes.extend((body.len() as u16).to_be_bytes());
    bytes.extend(body);
}

/// Takes a head of kind and length, and the body.
fn take(bytes: &[u8]) -> Option<(u16, usize, &[u8])> {
    let [a, b, c, d, rest @ ..] = bytes else { return None };
    Some((u16::from_be_bytes([*a, *b]), usize::from(u16::from_be_bytes([*c, *d])), rest))
}

/// What is sent over TLS.
pub fn request() -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, record::CRITICAL | record::NEXT_PROTOCOL, &NTP_4.to_be_bytes());
    put(&mut bytes, record::CRITICAL | record::ALGORITHM, &AES_SIV.to_be_bytes());
    put(&mut bytes, record::CRITICAL | record::END, &[]);
    bytes
}

/// Reads the server's answer; `None` until it is whole.
pub fn given(mut bytes: &[u8]) -> Result<Option<Given>, Useless> {
    let (mut given, mut protocol, mut algorithm) = (Given::default(), false, false);
    while let Some((kind, length, rest)) = take(bytes) {
        let Some((body, rest)) = rest.split_at_checked(length) else { return Ok(None) };
        bytes = rest;
        match kind & !record::CRITICAL {
            record::END => {
                let whole = protocol && algorithm && !given.cookies.is_empty();
                return whole
                    .then_some(Some(given))
                    .ok_or(Useless("the server does not offer what was asked for"));
            }
            record::NEXT_PROTOCOL => protocol = body == NTP_4.to_be_bytes(),
            record::ALGORITHM => algorithm = body == AES_SIV.to_be_bytes(),
            record::ERROR | record::WARNING => {
                return Err(Useless("the server refuses the exchange of keys"));
            }
            record::COOKIE if given.cookies.len() < COOKIES && (1..=MAX_COOKIE).contains(&length) => {
                given.cookies.push(body.to_vec());
            }
            record::COOKIE => {}
            record::SERVER => given.server = String::from_utf8(body.to_vec()).ok(),
            record::PORT => given.port = <[u8; 2]>::try_from(body).ok().map(u16::from_be_bytes),
            _ if kind & record::CRITICAL != 0 => {
                return Err(Useless("the server needs what is not known here"));
            }
            _ => {}
        }
    }
    Ok(None)
}

/// Adds an extension field (RFC 7822): its length counts the head, and is a multiple of four.
fn add(packet: &mut Vec<u8>, kind: u16, body: &[u8]) {
    let mut body = body.to_vec();
    body.resize(body.len().next_multiple_of(4), 0);
    packet.extend(kind.to_be_bytes());
    packet.extend((body.len() as u16 + 4).to_be_bytes());
    packet.extend(body);
}

/// Adds the field that authenticates everything before it, and hides `plain` (5.6).
fn authenticate(packet: &mut Vec<u8>, key: &[u8; 32], nonce: [u8; 16], plain: &[u8]) -> Result<(), Useless> {
    let hidden = Aes128Siv::new(key.into()).encrypt([packet.as_slice(), &nonce], plain);
    let hidden = hidden.map_err(|_| Useless("it cannot be authenticated"))?;
    let mut body = (nonce.len() as u16).to_be_bytes().to_vec();
    body.extend((hidden.len() as u16).to_be_bytes());
    body.extend(nonce);
    body.extend(hidden);
    add(packet, field::AUTHENTICATOR, &body);
    Ok(())
}

/// Numbers that are new for each question.
#[derive(Debug, Clone, Copy, Default)]
pub struct Random {
    /// As in [`plain`] NTP.
    pub time: [u8; 8],
    /// By which an answer is known.
    pub unique: [u8; 32],
    /// Of the authentication.
    pub nonce: [u8; 16],
}

/// The question.
pub fn question(random: &Random, cookie: &[u8], keys: &Keys) -> Result<Vec<u8>, Useless> {
    let mut packet = plain(random.time).to_vec();
    add(&mut packet, field::UNIQUE, &random.unique);
    add(&mut packet, field::COOKIE, cookie);
    authenticate(&mut packet, &keys.to_server, random.nonce, &[])?;
    Ok(packet)
}

/// The fields of a packet from byte `at` on: kind, where it begins, body.
fn fields(packet: &[u8], mut at: usize) -> impl Iterator<Item = (u16, usize, &[u8])> {
    std::iter::from_fn(move || {
        let (kind, length, _) = take(packet.get(at..)?)?;
        let body = packet.get(at + 4..at + length)?;
        let begins = at;
        at += length;
        (length >= 4).then_some((kind, begins, body))
    })
}

/// Nonce and what is hidden, of an authenticator's body.
fn parts(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let (nonce, hidden, rest) = take(body)?;
    let nonce_padded = usize::from(nonce).next_multiple_of(4);
    Some((rest.get(..usize::from(nonce))?, rest.get(nonce_padded..nonce_padded.checked_add(hidden)?)?))
}

/// Verifies an answer, whose first 48 bytes are then believed as far as the server is, and returns the cookies in it. Fields behind
/// the authenticator are nobody's word.
pub fn answer(packet: &[u8], unique: &[u8; 32], keys: &Keys) -> Result<Vec<Vec<u8>>, Useless> {
    let mut own = false;
    for (kind, at, body) in fields(packet, LENGTH) {
        match kind {
            field::UNIQUE => own |= body == unique,
            field::AUTHENTICATOR => {
                let (nonce, hidden) = parts(body).ok_or(Useless("its authentication is no such thing"))?;
                let plain = Aes128Siv::new((&keys.to_client).into()).decrypt([&packet[..at], nonce], hidden);
                let plain = plain.map_err(|_| Useless("it is forged"))?;
                if !own {
                    return Err(Useless("it does not belong to the question"));
                }
                let cookies = fields(&plain, 0).filter(|(kind, _, body)| {
                    *kind == field::COOKIE && (1..=MAX_COOKIE).contains(&body.len())
                });
                return Ok(cookies.map(|(_, _, body)| body.to_vec()).take(COOKIES).collect());
            }
            _ => {}
        }
    }
    Err(Useless("it is not authenticated"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) const KEYS: Keys = Keys { to_server: [3; 32], to_client: [4; 32] };

    /// A server's answer to a question, with these cookies; `None` if the question is not authentic.
    pub(crate) fn serve(
        question: &[u8],
        header: [u8; LENGTH],
        keys: &Keys,
        cookies: &[Vec<u8>],
    ) -> Option<Vec<u8>> {
        let (_, at, body) = fields(question, LENGTH).find(|(kind, ..)| *kind == field::AUTHENTICATOR)?;
        let (nonce, hidden) = parts(body)?;
        Aes128Siv::new((&keys.to_server).into()).decrypt([&question[..at], nonce], hidden).ok()?;
        let (_, _, unique) = fields(question, LENGTH).find(|(kind, ..)| *kind == field::UNIQUE)?;
        let mut packet = header.to_vec();
        add(&mut packet, field::UNIQUE, unique);
        let mut plain = Vec::new();
        cookies.iter().for_each(|cookie| add(&mut plain, field::COOKIE, cookie));
        authenticate(&mut packet, &keys.to_client, [9; 16], &plain).ok()?;
        Some(packet)
    }

    /// What a server says over TLS.
    pub(crate) fn offer(cookies: &[Vec<u8>], port: u16) -> Vec<u8> {
        let mut bytes = request();
        bytes.truncate(bytes.len() - 4);
        cookies.iter().for_each(|cookie| put(&mut bytes, record::COOKIE, cookie));
        put(&mut bytes, record::PORT, &port.to_be_bytes());
        put(&mut bytes, record::CRITICAL | record::END, &[]);
        bytes
    }

    const RANDOM: Random = Random { time: [1; 8], unique: [2; 32], nonce: [5; 16] };

    #[test]
    fn an_answer_is_believed_only_as_it_was_given_to_this_question() {
        let question = question(&RANDOM, &[7; 100], &KEYS).unwrap();
        let packet = serve(&question, [8; LENGTH], &KEYS, &[vec![6; 100], vec![5; 100]]).unwrap();
        assert_eq!(answer(&packet, &RANDOM.unique, &KEYS).unwrap(), [vec![6; 100], vec![5; 100]]);
        for at in 0..packet.len() * 8 {
            let mut other = packet.clone();
            other[at / 8] ^= 1 << (at % 8);
            assert!(answer(&other, &RANDOM.unique, &KEYS).is_err(), "bit {at}");
        }
        assert!(answer(&packet, &[3; 32], &KEYS).is_err(), "an answer to another question");
        let swapped = Keys { to_server: KEYS.to_client, to_client: KEYS.to_server };
        assert!(answer(&packet, &RANDOM.unique, &swapped).is_err());
        assert!(answer(&[8; LENGTH], &RANDOM.unique, &KEYS).is_err(), "plain NTP");
        // The question itself, sent back.
        assert!(answer(&question, &RANDOM.unique, &KEYS).is_err());
        // What comes behind is passed over.
        let mut more = packet.clone();
        add(&mut more, field::COOKIE, &[1; 50]);
        assert_eq!(answer(&more, &RANDOM.unique, &KEYS).unwrap().len(), 2);
        let mut forged = question;
        forged[50] ^= 1;
        assert_eq!(serve(&forged, [8; LENGTH], &KEYS, &[]), None);
    }

    #[test]
    fn a_server_that_does_not_offer_what_was_asked_for_is_refused() {
        let good = offer(&[vec![1; 64]], 124);
        let found = given(&good).unwrap().unwrap();
        assert_eq!(found, Given { cookies: vec![vec![1; 64]], server: None, port: Some(124) });
        for length in 0..good.len() {
            assert_eq!(given(&good[..length]), Ok(None));
        }
        assert!(given(&offer(&[], 123)).is_err(), "no cookies");
        for (at, value, what) in [(5, 1, "another protocol"), (11, 16, "another algorithm")] {
            let mut bad = good.clone();
            bad[at] = value;
            assert!(given(&bad).is_err(), "{what}");
        }
        for (kind, what) in [(2, "an error"), (3, "a warning"), (0x8063, "an unknown critical record")] {
            let mut bad = Vec::new();
            put(&mut bad, kind, &[0, 0]);
            bad.extend(&good);
            assert!(given(&bad).is_err(), "{what}");
        }
        let mut unknown = Vec::new();
        put(&mut unknown, 0x63, &[0]);
        unknown.extend(&good);
        assert!(given(&unknown).unwrap().is_some());
        assert_eq!(given(&offer(&vec![vec![1; 64]; 20], 1)).unwrap().unwrap().cookies.len(), COOKIES);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..300),
            kinds in proptest::collection::vec((0..8_u16, proptest::collection::vec(any::<u8>(), 0..30)), 0..12),
        ) {
            let _ = (given(&bytes), answer(&bytes, &[0; 32], &KEYS), parts(&bytes));
            let (mut records, mut packet) = (Vec::new(), vec![0; LENGTH]);
            for (kind, body) in &kinds {
                put(&mut records, *kind, body);
                add(&mut packet, kind * 0x100 + 4, body);
            }
            let _ = (given(&records), answer(&packet, &[0; 32], &KEYS));
        }
    }
}
