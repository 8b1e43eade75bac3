//! This guest's part in a hand-over of the node's key: who it is, and whose turn it is. The messages and the decisions
//! are the crate `upgrade`'s.

use crate::clock;
use crate::console::chain;
use crate::evidence::Provider;
use crate::storage::{StorageError, Vault};
use crate::vault::Content;
use attestation::Report;
use host_guest::{ToGuest, ToHost};
use release::{Purpose, Root, RootError};
use std::path::Path;
use std::sync::Arc;
use upgrade::exchange::{self, Documents, ExchangeError, Giver, Judge, Receiver, Waiting};
use upgrade::hand_over::Facts;

/// The root of the releases, in the image and so measured.
pub const ROOT: &str = "/root.json";

/// A hand-over ends without a key.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No root to judge by.
    #[error("{ROOT} in this guest's image cannot be read: {0}; build the image anew")]
    NoRoot(#[source] std::io::Error),
    /// A root that its own keys have not signed.
    #[error("{ROOT} in this guest's image is refused; build the image anew")]
    Root(#[source] RootError),
    /// One side refuses, or the host interferes.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// What was handed over is of another format.
    #[error(
        "what was handed over has a format that this guest does not know; take a release between the two first"
    )]
    Content,
    /// The vault cannot be written.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A message out of turn.
    #[error("the host sent a message of a hand-over that this guest has not begun; begin a new one")]
    OutOfTurn,
}

impl Failure {
    /// A short fixed name, for scripts and tests.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoRoot(_) | Self::Root(_) => "hand-over-no-root",
            Self::Exchange(error) => error.code(),
            Self::Content => "hand-over-format",
            Self::Storage(_) => "hand-over-storage",
            Self::OutOfTurn => "hand-over-message",
        }
    }

    /// As the host is told.
    pub fn told(&self) -> ToHost {
        ToHost::HandOverFailed { code: self.code().to_owned(), error: chain(self) }
    }
}

/// Who this guest is towards another one.
pub struct Party {
    provider: Arc<Provider>,
    own: Facts,
    root: Root,
}

impl Party {
    /// The guest that `report`, of its own, tells of.
    pub fn new(provider: Arc<Provider>, report: &Report) -> Result<Party, Failure> {
        let bytes = std::fs::read(Path::new(ROOT)).map_err(Failure::NoRoot)?;
        let root = Root::from_bytes(&bytes).map_err(Failure::Root)?;
        let own = Facts::stated(provider.anchors().kind(), report);
        Ok(Party { provider, own, root })
    }

    fn judge(&self) -> Judge<'_> {
        Judge { own: &self.own, anchors: self.provider.anchors(), root: &self.root }
    }

    fn quote(&self, report_data: [u8; 64]) -> Result<attestation::Evidence, String> {
        self.provider.quote(&report_data).map_err(|error| chain(&error))
    }
}

/// The old guest's side.
#[derive(Default)]
pub struct Giving {
    /// Waits for the third message.
    giver: Option<Giver>,
}

impl Giving {
    /// Answers a message; also says whether the key passed with the answer.
    pub fn answer(
        &mut self,
        message: &str,
        party: &Party,
        vault: &mut Vault,
    ) -> Result<(String, bool), Failure> {
        if exchange::begins(message) {
            let kind = party.provider.anchors().kind();
            let (giver, challenge) = Giver::challenge(message, kind, &|data| party.quote(data))?;
            self.giver = Some(giver);
            return Ok((challenge, false));
        }
        let giver = self.giver.take().ok_or(Failure::OutOfTurn)?;
        let content = vault.content().clone();
        let payload =
            |seen: &release::Seen, purpose| Content { seen: *seen, purpose, ..content.clone() }.to_bytes();
        let given = giver.give(message, party.judge(), content.seen, clock::now(), &payload)?;
        // What was seen is kept before the key leaves.
        vault.remember(given.seen)?;
        Ok((given.message, true))
    }
}

/// The new guest's side.
#[derive(Default)]
pub enum Receiving {
    /// The host has not said to begin.
    #[default]
    Waiting,
    /// The first message was sent.
    Greeted(Box<Greeted>),
    /// The third message was sent.
    Requested(Box<Waiting>),
}

/// What is kept until the second message.
pub struct Greeted {
    receiver: Receiver,
    /// Manifest of the old guest.
    giver: String,
    /// Of the own release.
    documents: Documents,
}

/// What follows from a message of the host.
pub enum Step {
    /// To be sent to the other guest.
    Send(String),
    /// What was handed over.
    Received(Content),
}

impl Receiving {
    /// Takes a message of the host; nothing follows from those that are not about the hand-over. After a failure the host
    /// may begin anew.
    pub fn step(&mut self, message: &ToGuest, party: &Party) -> Result<Option<Step>, Failure> {
        let (next, step) = match (std::mem::take(self), message) {
            (_, ToGuest::TakeOver { giver, roots, manifest, blessing, recovery }) => {
                let documents = Documents {
                    roots: roots.clone(),
                    manifest: manifest.clone(),
                    blessing: blessing.clone(),
                    purpose: if *recovery { Purpose::Recovery } else { Purpose::Node },
                };
                let (receiver, hello) = Receiver::begin()?;
                let greeted = Greeted { receiver, giver: giver.clone(), documents };
                (Self::Greeted(Box::new(greeted)), Some(Step::Send(hello)))
            }
            (Self::Greeted(greeted), ToGuest::HandOver { message }) => {
                let Greeted { receiver, giver, documents } = *greeted;
                let quote = |data| party.quote(data);
                let (waiting, request) =
                    receiver.request(message, party.judge(), &giver, documents, &quote)?;
                (Self::Requested(Box::new(waiting)), Some(Step::Send(request)))
            }
            (Self::Requested(waiting), ToGuest::HandOver { message }) => {
                let content = waiting.finish(message)?;
                let content = Content::from_bytes(&content).map_err(|_| Failure::Content)?;
                (Self::Waiting, Some(Step::Received(content)))
            }
            (Self::Waiting, ToGuest::HandOver { .. }) => return Err(Failure::OutOfTurn),
            (unchanged, _) => (unchanged, None),
        };
        *self = next;
        Ok(step)
    }
}
