//! The host's part in a hand-over: it carries messages between two guests, and learns nothing from them.

use crate::guest::Report;
use host_guest::ToGuest;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// For a whole hand-over, from the first message: four reports of a Secure Processor, or of one that is emulated.
const PATIENCE: Duration = Duration::from_secs(300);

/// What one guest says about the hand-over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Heard {
    /// For the other guest.
    Message(String),
    /// Its part is done.
    Done,
    /// It ended without a key.
    Failed {
        /// A short fixed name.
        code: String,
        /// In words.
        error: String,
    },
}

/// No key passed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CarryError {
    /// A guest refuses.
    #[error("{error}")]
    Refused {
        /// A short fixed name.
        code: String,
        /// In words.
        error: String,
    },
    /// The new guest could not be started.
    #[error("the new guest cannot be started: {0}")]
    NotStarted(String),
    /// The new guest ended before it had the key.
    #[error("the new guest ended before it had the key: {0}; look at candidate.log")]
    Ended(String),
    /// A guest ended or was silent.
    #[error("the {0} guest ended or fell silent during the hand-over; look at its console and begin again")]
    Silent(&'static str),
}

impl CarryError {
    /// A short fixed name, for scripts and tests; the guest's own if one refuses.
    pub fn code(&self) -> &str {
        match self {
            Self::Refused { code, .. } => code,
            Self::NotStarted(_) => "hand-over-not-started",
            Self::Ended(_) => "hand-over-ended",
            Self::Silent(_) => "hand-over-silent",
        }
    }
}

/// Carries messages until the new guest says that the key is in its vault: `old` and `new` are their ears. Returns how long it
/// took since the new guest was there.
pub(crate) async fn carry(
    old: mpsc::Sender<ToGuest>,
    mut old_heard: mpsc::Receiver<Heard>,
    new: mpsc::Sender<ToGuest>,
    mut new_reports: mpsc::Receiver<(u64, Report)>,
    documents: ToGuest,
) -> Result<Duration, CarryError> {
    let mut began = Instant::now();
    let mut documents = Some(documents);
    let both = async {
        loop {
            let (whose, heard) = tokio::select! {
                report = new_reports.recv() => match report.ok_or(CarryError::Silent("new"))?.1 {
                    Report::HandOver(heard) => ("new", heard),
                    Report::Greeted => {
                        if let Some(documents) = documents.take() {
                            began = Instant::now();
                            new.send(documents).await.map_err(|_| CarryError::Silent("new"))?;
                        }
                        continue;
                    }
                    Report::Stopping(why) | Report::PortClosed(why) => return Err(CarryError::Ended(why)),
                    _ => continue,
                },
                heard = old_heard.recv() => ("old", heard.ok_or(CarryError::Silent("old"))?),
            };
            match heard {
                Heard::Message(message) => {
                    let (ear, other) = if whose == "new" { (&old, "old") } else { (&new, "new") };
                    let told = ear.send(ToGuest::HandOver { message }).await;
                    told.map_err(|_| CarryError::Silent(other))?;
                }
                Heard::Done if whose == "new" => return Ok(began.elapsed()),
                // The old guest's last message is on its way.
                Heard::Done => {}
                Heard::Failed { code, error } => return Err(CarryError::Refused { code, error }),
            }
        }
    };
    timeout(PATIENCE, both).await.unwrap_or(Err(CarryError::Silent("new")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What both guests say, and what comes of it: the end, and what each was told.
    async fn played(
        old: &[Heard],
        new: Vec<Report>,
    ) -> (Result<Duration, CarryError>, Vec<ToGuest>, Vec<ToGuest>) {
        let (says_old, hears_old) = mpsc::channel(8);
        let (says_new, hears_new) = mpsc::channel(8);
        for heard in old {
            says_old.try_send(heard.clone()).unwrap();
        }
        for report in new {
            says_new.try_send((1, report)).unwrap();
        }
        drop(says_new);
        let ((to_old, mut told_old), (to_new, mut told_new)) = (mpsc::channel(8), mpsc::channel(8));
        let end = carry(to_old, hears_old, to_new, hears_new, ToGuest::PowerOff).await;
        let (mut one, mut other) = (Vec::new(), Vec::new());
        told_old.recv_many(&mut one, 8).await;
        told_new.recv_many(&mut other, 8).await;
        (end, one, other)
    }

    #[tokio::test]
    async fn each_message_goes_to_the_other_side() {
        let says = |text: &str| Report::HandOver(Heard::Message(text.to_owned()));
        let told = |text: &str| ToGuest::HandOver { message: text.to_owned() };
        let done = Report::HandOver(Heard::Done);
        let new = vec![Report::Greeted, says("a"), Report::Greeted, says("b"), done];
        let (end, to_old, to_new) = played(&[Heard::Done], new).await;
        assert_eq!((end.is_ok(), to_old), (true, vec![told("a"), told("b")]));
        assert_eq!(to_new, [ToGuest::PowerOff], "the documents, once");
    }

    #[tokio::test]
    async fn a_refusal_is_told_and_silence_is_one() {
        let refused = Heard::Failed { code: "hand-over-unblessed".into(), error: "no".into() };
        let (end, ..) = played(&[], vec![Report::HandOver(refused)]).await;
        assert_eq!(end.unwrap_err().code(), "hand-over-unblessed");
        let (end, ..) = played(&[], vec![Report::Stopping("panic".into())]).await;
        assert_eq!(end, Err(CarryError::Ended("panic".into())));
        let (end, ..) = played(&[], Vec::new()).await;
        assert_eq!(end, Err(CarryError::Silent("new")));
    }
}
