//! Keys that sign: in a file, or in a PKCS#11 token.

use crate::output::{Failure, Reply};
use clap::Args;
use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    mechanism::{
        Mechanism,
        eddsa::{EddsaParams, EddsaSignatureScheme},
    },
    object::{Attribute, AttributeType, ObjectClass},
    session::{Session, UserType},
    types::AuthPin,
};
use release::{SigningKey, VerifyingKey};
use serde_json::json;
use std::{
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// Which key signs.
#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    /// Private key: ed25519, PKCS #8, PEM
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "pkcs11_module",
        conflicts_with = "pkcs11_module"
    )]
    key: Option<PathBuf>,
    #[command(flatten)]
    token: TokenArgs,
}

/// A key in a token.
#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    /// PKCS#11 module of the token that has the key
    #[arg(long, value_name = "FILE", requires = "pkcs11_key", requires = "pin_file")]
    pkcs11_module: Option<PathBuf>,
    /// Label of the key in the token
    #[arg(long, value_name = "LABEL")]
    pkcs11_key: Option<String>,
    /// Label of the token, if the module knows several
    #[arg(long, value_name = "LABEL")]
    pkcs11_token: Option<String>,
    /// File with the token's user PIN
    #[arg(long, value_name = "FILE")]
    pin_file: Option<PathBuf>,
}

/// A key that can sign.
#[expect(clippy::large_enum_variant, reason = "there is one at a time, and briefly")]
pub(crate) enum Key {
    File(Box<SigningKey>),
    Token { session: Session, public: VerifyingKey, label: String },
}

/// DER of the curve's name, as PKCS#11 2.40 has it for ed25519: PrintableString "edwards25519".
const EDWARDS25519: &[u8] = b"\x13\x0cedwards25519";

fn token_failure(what: &str) -> impl Fn(cryptoki::error::Error) -> Failure {
    move |error| {
        Failure::new("token", format!("the token refuses to {what}: {error}; check module, label and PIN"))
    }
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| {
        Failure::usage("file-unreadable", format!("cannot read {}: {error}; check the path", path.display()))
    })
}

pub(crate) fn read_text(path: &Path) -> Result<String, Failure> {
    String::from_utf8(read(path)?).map_err(|_| {
        Failure::usage("file-unreadable", format!("{} is no text; give another file", path.display()))
    })
}

impl KeyArgs {
    pub(crate) fn open(&self) -> Result<Key, Failure> {
        match &self.key {
            Some(path) => {
                let key = release::signing_key_from_pem(&read_text(path)?)
                    .map_err(|error| Failure::new("key-unusable", format!("{}: {error}", path.display())))?;
                Ok(Key::File(Box::new(key)))
            }
            None => self.token.open(),
        }
    }
}

impl TokenArgs {
    fn session(&self) -> Result<(Session, String), Failure> {
        let (Some(module), Some(label), Some(pin_file)) =
            (&self.pkcs11_module, &self.pkcs11_key, &self.pin_file)
        else {
            let message = "a token needs --pkcs11-module, --pkcs11-key and --pin-file";
            return Err(Failure::usage("usage", message));
        };
        let pkcs11 = Pkcs11::new(module).map_err(token_failure("load"))?;
        let arguments = CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK);
        pkcs11.initialize(arguments).map_err(token_failure("start"))?;
        let slots = pkcs11.get_slots_with_initialized_token().map_err(token_failure("be listed"))?;
        let wanted = |slot| match &self.pkcs11_token {
            None => true,
            Some(label) => pkcs11.get_token_info(slot).is_ok_and(|info| info.label() == label),
        };
        let slot = slots.into_iter().find(|slot| wanted(*slot)).ok_or_else(|| {
            Failure::new(
                "token",
                format!("{} knows no such token; check that it is plugged in", module.display()),
            )
        })?;
        let session = pkcs11.open_rw_session(slot).map_err(token_failure("open a session"))?;
        let pin = AuthPin::new(read_text(pin_file)?.trim_end().into());
        session.login(UserType::User, Some(&pin)).map_err(token_failure("log in"))?;
        Ok((session, label.clone()))
    }

    fn open(&self) -> Result<Key, Failure> {
        let (session, label) = self.session()?;
        let public = public_key(&session, &label)?;
        Ok(Key::Token { session, public, label })
    }

    /// Makes a key pair that never leaves the token.
    fn generate(&self) -> Result<VerifyingKey, Failure> {
        let (session, label) = self.session()?;
        let named = || Attribute::Label(label.clone().into_bytes());
        if !find(&session, ObjectClass::PRIVATE_KEY, &label)?.is_empty() {
            let message = format!("the token has a key {label:?} already; choose another label");
            return Err(Failure::new("key-exists", message));
        }
        let public = [
            Attribute::Token(true),
            Attribute::Private(false),
            Attribute::Verify(true),
            Attribute::EcParams(EDWARDS25519.to_vec()),
            named(),
        ];
        let private = [
            Attribute::Token(true),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(false),
            Attribute::Sign(true),
            named(),
        ];
        session
            .generate_key_pair(&Mechanism::EccEdwardsKeyPairGen, &public, &private)
            .map_err(token_failure("make a key"))?;
        public_key(&session, &label)
    }
}

fn find(
    session: &Session,
    class: ObjectClass,
    label: &str,
) -> Result<Vec<cryptoki::object::ObjectHandle>, Failure> {
    let template = [Attribute::Class(class), Attribute::Label(label.as_bytes().to_vec())];
    session.find_objects(&template).map_err(token_failure("find the key"))
}

fn the_one(
    session: &Session,
    class: ObjectClass,
    label: &str,
) -> Result<cryptoki::object::ObjectHandle, Failure> {
    match find(session, class, label)?.as_slice() {
        [one] => Ok(*one),
        found => Err(Failure::new(
            "token",
            format!("the token has {} keys {label:?}, one is needed; check the label", found.len()),
        )),
    }
}

fn public_key(session: &Session, label: &str) -> Result<VerifyingKey, Failure> {
    let object = the_one(session, ObjectClass::PUBLIC_KEY, label)?;
    let attributes =
        session.get_attributes(object, &[AttributeType::EcPoint]).map_err(token_failure("show the key"))?;
    let point = attributes.into_iter().find_map(|attribute| match attribute {
        Attribute::EcPoint(point) => Some(point),
        _ => None,
    });
    // A DER octet string around the point; some tokens leave the header out.
    point
        .as_deref()
        .map(|point| point.strip_prefix(b"\x04\x20").unwrap_or(point))
        .and_then(|bytes| VerifyingKey::from_bytes(bytes.try_into().ok()?).ok())
        .ok_or_else(|| Failure::new("key-unusable", format!("the token's key {label:?} is no ed25519 key")))
}

impl Key {
    pub(crate) fn public(&self) -> VerifyingKey {
        match self {
            Key::File(key) => key.verifying_key(),
            Key::Token { public, .. } => *public,
        }
    }

    pub(crate) fn sign(&self, bytes: &[u8]) -> Result<[u8; 64], Failure> {
        match self {
            Key::File(key) => {
                use ed25519_dalek::Signer;
                Ok(key.sign(bytes).to_bytes())
            }
            Key::Token { session, label, .. } => {
                let key = the_one(session, ObjectClass::PRIVATE_KEY, label)?;
                let mechanism = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Pure));
                let signature = session.sign(&mechanism, key, bytes).map_err(token_failure("sign"))?;
                signature
                    .try_into()
                    .map_err(|_| Failure::new("token", "the token's signature is not 64 bytes long"))
            }
        }
    }
}

/// Make an ed25519 key: a private one in FILE and a public one in FILE with the ending .pub; or one that stays in a token
#[derive(Debug, Args)]
pub(crate) struct Keygen {
    /// File that receives the private key; with a token, only its .pub is written
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    token: TokenArgs,
}

/// Writes a new file that only its owner can read, and never over another.
fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let write = || {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|error: std::io::Error| {
        Failure::new("file-unwritable", format!("cannot write {}: {error}; give a new file", path.display()))
    })
}

pub(crate) fn keygen(args: &Keygen) -> Result<Reply, Failure> {
    let unusable = |error: &dyn std::error::Error| Failure::of("key-unusable", error);
    let public = if args.token.pkcs11_module.is_some() {
        args.token.generate()?
    } else {
        let mut seed = [0; 32];
        std::fs::File::open("/dev/urandom")
            .and_then(|mut source| source.read_exact(&mut seed))
            .map_err(|error| Failure::new("no-randomness", format!("cannot read /dev/urandom: {error}")))?;
        let key = SigningKey::from_bytes(&seed);
        let pem = release::signing_key_to_pem(&key).map_err(|error| unusable(&error))?;
        write_new(&args.out, &pem, 0o600)?;
        key.verifying_key()
    };
    let file = args.out.with_extension("pub");
    let pem = release::public_key_to_pem(&public).map_err(|error| unusable(&error))?;
    write_new(&file, &pem, 0o644)?;
    let id = release::key_id(&public);
    let text = format!("key {id}\npublic key in {}", file.display());
    Ok(Reply::good(text, json!({ "keyid": id, "public_key": file })))
}

/// Public keys from files.
pub(crate) fn public_keys(files: &[PathBuf]) -> Result<Vec<VerifyingKey>, Failure> {
    let key = |path: &PathBuf| {
        release::public_key_from_pem(&read_text(path)?)
            .map_err(|error| Failure::new("key-unusable", format!("{}: {error}", path.display())))
    };
    files.iter().map(key).collect()
}
