//! Reading, signing, merging and showing documents of any kind.

use super::{
    create::check_images,
    keys::{Key, KeyArgs, read},
    manifest_path,
};
use crate::output::{Failure, Reply};
use clap::Args;
use release::{Blessing, Digest, Document, KeyId, Manifest, RootContent, Signed};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// Add a key's signature to a root, manifest or blessing
///
/// A manifest is signed only if every file beside it has the hash, the launch measurements follow from the files, and the
/// host's images belong together.
#[derive(Debug, Args)]
pub(crate) struct Sign {
    /// The document, or the directory that holds a release's manifest.json
    #[arg(value_name = "FILE")]
    document: PathBuf,
    #[command(flatten)]
    key: KeyArgs,
    /// File that receives the document with the signature [default: the document itself]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Bring the signatures of copies of one document together
#[derive(Debug, Args)]
pub(crate) struct Merge {
    /// Copies with different signatures
    #[arg(value_name = "FILE", required = true, num_args = 1..)]
    documents: Vec<PathBuf>,
    /// File that receives all signatures
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Show what a document says and who signed it, without verifying anything
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// The document, or the directory that holds a release's manifest.json
    #[arg(value_name = "FILE")]
    document: PathBuf,
}

/// A document of any kind.
#[expect(clippy::large_enum_variant, reason = "there is one at a time, and briefly")]
pub(crate) enum Any {
    Manifest(Signed<Manifest>),
    Root(Signed<RootContent>),
    Blessing(Signed<Blessing>),
}

/// The same with each kind.
macro_rules! with {
    ($any:expr, $document:ident => $do:expr) => {
        match $any {
            Any::Manifest($document) => $do,
            Any::Root($document) => $do,
            Any::Blessing($document) => $do,
        }
    };
}

/// Reads a document of a known kind, without verifying it.
pub(crate) fn open<T: Document>(path: &Path) -> Result<Signed<T>, Failure> {
    Signed::from_bytes(&read(path)?).map_err(|error| Failure::of(error.code(), &error))
}

pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    // Written whole beside it, so that a full disk cannot cost the signatures that were there.
    let draft = path.with_added_extension("draft");
    std::fs::write(&draft, bytes)
        .and_then(|()| std::fs::rename(&draft, path))
        .map_err(|error| Failure::new("file-unwritable", format!("cannot write {}: {error}", path.display())))
}

/// An unsigned document for a file.
pub(crate) fn unsigned<T: Document>(content: T) -> Result<Signed<T>, Failure> {
    Signed::new(content).map_err(|error| Failure::of(T::CODES[6], &error))
}

impl Any {
    fn open(path: &Path) -> Result<Any, Failure> {
        let bytes = read(path)?;
        let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        // The parsers of each kind give the reason if it is none of them.
        match value["signed"]["_type"].as_str() {
            Some(release::ROOT_TYPE) => open(path).map(Any::Root),
            Some(release::BLESSING_TYPE) => open(path).map(Any::Blessing),
            _ => open(path).map(Any::Manifest),
        }
    }

    fn sign(&mut self, key: &Key) -> Result<KeyId, Failure> {
        with!(self, document => {
            let signature = key.sign(document.signed_bytes())?;
            document
                .attach(&key.public(), signature)
                .map_err(|error| Failure::of("not-signed", &error))
        })
    }

    fn merge(&mut self, other: &Any) -> Result<(), Failure> {
        match (self, other) {
            (Any::Manifest(document), Any::Manifest(other)) => document.merge(other),
            (Any::Root(document), Any::Root(other)) => document.merge(other),
            (Any::Blessing(document), Any::Blessing(other)) => document.merge(other),
            _ => Err(release::SignError::OtherContent),
        }
        .map_err(|error| Failure::of("not-merged", &error))
    }

    fn digest(&self) -> Digest {
        with!(self, document => document.digest())
    }

    fn signers(&self) -> Vec<KeyId> {
        with!(self, document => document.signers().copied().collect())
    }

    fn bytes(&self) -> Vec<u8> {
        with!(self, document => document.to_bytes())
    }

    fn kind(&self) -> &'static str {
        fn name<T: Document>(_: &Signed<T>) -> &'static str {
            T::NAME
        }
        with!(self, document => name(document))
    }

    fn content(&self) -> Value {
        with!(self, document => serde_json::to_value(document.content()).unwrap_or_default())
    }

    fn reply(&self, done: &str, path: &Path) -> Reply {
        let signers = self.signers();
        let text = format!("{} {done} in {}: signed by {} keys", self.kind(), path.display(), signers.len());
        Reply::good(
            text,
            json!({ "kind": self.kind(), "file": path, "digest": self.digest(), "signers": signers }),
        )
    }
}

pub(crate) fn sign(args: &Sign) -> Result<Reply, Failure> {
    let path = manifest_path(&args.document);
    let mut document = Any::open(&path)?;
    if let Any::Manifest(manifest) = &document {
        check_images(&path, manifest.content())?;
    }
    document.sign(&args.key.open()?)?;
    let out = args.out.as_ref().unwrap_or(&path);
    write(out, &document.bytes())?;
    Ok(document.reply("signed", out))
}

pub(crate) fn merge(args: &Merge) -> Result<Reply, Failure> {
    let mut documents = args.documents.iter().map(|path| Any::open(path));
    let Some(first) = documents.next() else { return Err(Failure::usage("usage", "give two or more files")) };
    let mut all = first?;
    for document in documents {
        all.merge(&document?)?;
    }
    write(&args.out, &all.bytes())?;
    Ok(all.reply("merged", &args.out))
}

pub(crate) fn inspect(args: &Inspect) -> Result<Reply, Failure> {
    let document = Any::open(&manifest_path(&args.document))?;
    let (content, signers) = (document.content(), document.signers());
    let mut text = format!("{} {}\n{content:#}", document.kind(), document.digest());
    for signer in &signers {
        text += &format!("\nsigned by {signer} (not verified)");
    }
    let json = json!({
        "kind": document.kind(), "digest": document.digest(), "signers": signers, "content": content,
    });
    Ok(Reply::good(text, json))
}
