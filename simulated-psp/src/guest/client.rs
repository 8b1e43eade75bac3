//! Client of the port.

use crate::protocol::{Bytes, KeyRequest, REPORT_LENGTH, Request, Response, Status};
use host_guest::{FrameError, read_frame, write_frame};
use std::io::{Read, Write};

/// Asks the simulated PSP over a stream, usually the virtio-serial port [`crate::protocol::PORT`].
#[derive(Debug)]
pub struct Client<S> {
    stream: S,
    /// After a failure the stream may hold half a frame or a late answer: nothing on it can be matched any more.
    broken: bool,
}

/// Why the simulated PSP gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The request was understood and refused.
    #[error("the simulated PSP refused the request ({status:?}): {reason}")]
    Refused {
        /// Status word of the guest message.
        status: Status,
        /// In words.
        reason: String,
    },
    /// The port failed or carries something else than the protocol.
    #[error("the port of the simulated PSP failed; restart the guest: {0}")]
    Frame(#[from] FrameError),
    /// The answer is not one to this request.
    #[error("the simulated PSP answered something that was not asked; restart the guest")]
    Mismatch,
    /// An earlier failure left the port in an unknown state.
    #[error("the port of the simulated PSP failed before; restart the guest")]
    Broken,
}

/// An attestation report and the table of the certificates that endorse it.
pub(super) struct Answer {
    pub(super) report: [u8; REPORT_LENGTH],
    pub(super) certificates: Vec<u8>,
}

impl<S: Read + Write> Client<S> {
    /// A client that owns its end of the stream.
    pub fn new(stream: S) -> Self {
        Self { stream, broken: false }
    }

    pub(super) fn report(&mut self, report_data: [u8; 64], vmpl: u32) -> Result<Answer, ClientError> {
        match self.ask(&Request::Report { report_data: Bytes(report_data), vmpl })? {
            Response::Report { report, certificates } => {
                Ok(Answer { report: report.0, certificates: certificates.0 })
            }
            _ => self.fail(ClientError::Mismatch),
        }
    }

    /// Asks for a derived key (MSG_KEY_REQ).
    pub fn derived_key(&mut self, request: KeyRequest) -> Result<[u8; 32], ClientError> {
        match self.ask(&Request::DerivedKey(request))? {
            Response::DerivedKey { key } => Ok(key.0),
            _ => self.fail(ClientError::Mismatch),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Response, ClientError> {
        if self.broken {
            return Err(ClientError::Broken);
        }
        let answered =
            write_frame(&mut self.stream, request).and_then(|()| read_frame::<Response>(&mut self.stream));
        match answered {
            Ok(Response::Refused { status, reason }) => Err(ClientError::Refused { status, reason }),
            Ok(response) => Ok(response),
            Err(error) => self.fail(error.into()),
        }
    }

    fn fail<T>(&mut self, error: ClientError) -> Result<T, ClientError> {
        self.broken = true;
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{FieldSelect, KeyRoot};
    use std::os::unix::net::UnixStream;

    fn key_request() -> KeyRequest {
        KeyRequest {
            root: KeyRoot::Vcek,
            fields: FieldSelect::MEASUREMENT,
            vmpl: 0,
            guest_svn: 0,
            tcb_version: 0,
        }
    }

    /// A client whose peer answers with these bytes, whatever is asked, and then closes.
    fn answered_with(bytes: Vec<u8>) -> Client<UnixStream> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let _: Request = read_frame(&mut theirs).unwrap();
            theirs.write_all(&bytes).unwrap();
        });
        Client::new(ours)
    }

    #[test]
    fn a_key_is_asked_for_and_returned() {
        let frame = host_guest::encode(&Response::DerivedKey { key: Bytes([3; 32]) }).unwrap();
        assert_eq!(answered_with(frame).derived_key(key_request()).unwrap(), [3; 32]);
    }

    #[test]
    fn a_refusal_leaves_the_port_usable_and_any_other_failure_does_not() {
        let refusal = Response::Refused { status: Status::InvalidKeySelection, reason: "no".into() };
        let mut client = answered_with(host_guest::encode(&refusal).unwrap());
        assert!(matches!(client.derived_key(key_request()), Err(ClientError::Refused { .. })));
        assert!(!client.broken);

        let wrong = Response::Report {
            report: Box::new(Bytes([0; REPORT_LENGTH])),
            certificates: crate::protocol::Blob(vec![]),
        };
        let mut client = answered_with(host_guest::encode(&wrong).unwrap());
        assert!(matches!(client.derived_key(key_request()), Err(ClientError::Mismatch)));
        assert!(matches!(client.derived_key(key_request()), Err(ClientError::Broken)));

        let mut client = answered_with(b"\x02\0\0\0{".to_vec());
        assert!(matches!(client.report([0; 64], 0), Err(ClientError::Frame(_))));
        assert!(matches!(client.report([0; 64], 0), Err(ClientError::Broken)));
    }
}
