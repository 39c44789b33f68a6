//! Whether a private key belongs to a certificate. Keys are only compared, never used.

use x509_parser::pem::Pem;
use zeroize::Zeroizing;

/// The public half of a private key, as far as its file tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicHalf {
    /// Modulus and exponent, without leading zeros.
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    /// The uncompressed point.
    Ec(Vec<u8>),
    Ed25519(Vec<u8>),
}

/// What a file with a private key holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PrivateKey {
    Known(PublicHalf),
    /// Under a passphrase, or of a kind that is not compared here; a lower-case fragment.
    Unknown(&'static str),
}

/// Reads a private key from a PEM block; `None` when the block is something else.
pub fn private_key(pem: &Pem) -> Option<PrivateKey> {
    let contents = Zeroizing::new(pem.contents.clone());
    let half = match pem.label.as_str() {
        "PRIVATE KEY" => pkcs8(&contents),
        "RSA PRIVATE KEY" => pkcs1(&contents),
        "EC PRIVATE KEY" => sec1(&contents),
        "ENCRYPTED PRIVATE KEY" => return Some(PrivateKey::Unknown("it is under a passphrase")),
        label if label.ends_with("PRIVATE KEY") => return Some(PrivateKey::Unknown("its kind is not known here")),
        _ => return None,
    };
    Some(half.map_or(PrivateKey::Unknown("its public half is not in the file"), PrivateKey::Known))
}

/// The public key of a certificate, by its `SubjectPublicKeyInfo`: algorithm and key bits.
pub fn certificate_key(algorithm: &str, bits: &[u8]) -> Option<PublicHalf> {
    match algorithm {
        RSA => {
            let mut body = Der(bits).expect(SEQUENCE)?;
            Some(PublicHalf::Rsa { modulus: body.integer()?, exponent: body.integer()? })
        }
        EC => Some(PublicHalf::Ec(bits.to_vec())),
        ED25519 => Some(PublicHalf::Ed25519(bits.to_vec())),
        _ => None,
    }
}

const RSA: &str = "1.2.840.113549.1.1.1";
const EC: &str = "1.2.840.10045.2.1";
const ED25519: &str = "1.3.101.112";
const RSA_DER: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const EC_DER: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const ED25519_DER: &[u8] = &[0x2b, 0x65, 0x70];

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;

/// `PrivateKeyInfo` (RFC 5958): version, algorithm, key.
fn pkcs8(der: &[u8]) -> Option<PublicHalf> {
    let mut body = Der(der).expect(SEQUENCE)?;
    body.take(INTEGER)?;
    let mut algorithm = body.expect(SEQUENCE)?;
    let id = algorithm.take(OBJECT_ID)?;
    let key = body.take(OCTET_STRING)?;
    match id {
        RSA_DER => pkcs1(key),
        EC_DER => sec1(key),
        // The seed alone: its public half is computed by the one crate that has the curve.
        ED25519_DER => {
            let seed: [u8; 32] = Der(key).take(OCTET_STRING)?.try_into().ok()?;
            let pair = ssh_key::private::Ed25519Keypair::from_seed(&seed);
            Some(PublicHalf::Ed25519(pair.public.0.to_vec()))
        }
        _ => None,
    }
}

/// `RSAPrivateKey` (RFC 8017): version, modulus, public exponent, and the secret rest.
fn pkcs1(der: &[u8]) -> Option<PublicHalf> {
    let mut body = Der(der).expect(SEQUENCE)?;
    body.take(INTEGER)?;
    Some(PublicHalf::Rsa { modulus: body.integer()?, exponent: body.integer()? })
}

/// `ECPrivateKey` (RFC 5915): version, secret, optional parameters, optional public point.
fn sec1(der: &[u8]) -> Option<PublicHalf> {
    let mut body = Der(der).expect(SEQUENCE)?;
    body.take(INTEGER)?;
    body.take(OCTET_STRING)?;
    while let Some((tag, value)) = body.next() {
        if tag == 0xa1 {
            let bits = Der(value).take(BIT_STRING)?;
            return Some(PublicHalf::Ec(bits.strip_prefix(&[0])?.to_vec()));
        }
    }
    None
}

/// DER values, one behind the other.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (tag, rest) = self.0.split_first()?;
        let (first, mut rest) = rest.split_first()?;
        let mut length = usize::from(*first);
        if length >= 0x80 {
            let (digits, after) = rest.split_at_checked(length & 0x7f).filter(|(d, _)| d.len() <= 4)?;
            length = digits.iter().fold(0, |n, d| n << 8 | usize::from(*d));
            rest = after;
        }
        let (value, after) = rest.split_at_checked(length)?;
        self.0 = after;
        Some((*tag, value))
    }

    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(t, _)| *t == tag).map(|(_, value)| value)
    }

    fn expect(&mut self, tag: u8) -> Option<Der<'a>> {
        self.take(tag).map(Der)
    }

    fn integer(&mut self) -> Option<Vec<u8>> {
        let value = self.take(INTEGER)?;
        let zeros = value.iter().take_while(|b| **b == 0).count();
        Some(value[zeros..].to_vec())
    }
}
