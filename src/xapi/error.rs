//! What can go wrong between Lamina and a pool, and which of the three faults it is.
//!
//! Two questions matter above all and have their own methods: was the call perhaps executed although it failed
//! ([`Error::maybe_executed`]), and what kind of wait follows ([`Error::fault`]). No secret gets in here: the client blanks
//! the session out of failures before it builds one.

use std::sync::Arc;

use super::wire::{Failure, Ref};
use crate::domain::fault::Fault;

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No connection, so nothing was sent.
    #[error("could not connect to {endpoint}")]
    NotConnected { endpoint: String, source: Arc<reqwest::Error> },
    /// The call may have been executed, may be under way, or may never have arrived. Time-outs too.
    #[error("the connection to {endpoint} was lost before the reply was whole")]
    ConnectionLost { endpoint: String, source: Arc<reqwest::Error> },
    /// Nothing was sent.
    #[error("the certificate of {endpoint} was refused: {problem}")]
    Tls { endpoint: String, problem: TlsProblem },
    /// XAPI answers 200 even to failed calls: something else is talking, or a request was malformed.
    #[error("{endpoint} answered with HTTP status {status}")]
    Status { endpoint: String, status: u16 },
    #[error("{endpoint} sent a reply that cannot be understood")]
    Garbage { endpoint: String, source: Arc<serde_json::Error> },
    /// A barrier in the stream of events was not passed in time: what the mirror shows may be old.
    #[error("the pool's events did not come in time")]
    Behind,
    /// A disk's bytes were not moved, or nobody can tell.
    #[error("a disk's bytes were not moved through {endpoint}: {problem}")]
    Stream { endpoint: String, problem: StreamProblem },
    /// A live look met a record that is not shaped as its class is; it may be the one that was looked for.
    #[error("the {class} {reference} cannot be read")]
    Unreadable { class: &'static str, reference: Ref },
    #[error("xapi refused: {0}")]
    Api(Failure),
    /// A listed host is a member and named `named` as its coordinator, where no log-in succeeded.
    #[error("no log-in at the coordinator, named as {named}")]
    NoCoordinator { named: String, source: Box<Error> },
    /// This process may no longer change anything; nothing was sent.
    #[error("this replica does not lead")]
    NotLeading,
    /// The client cannot even be made from these options.
    #[error("{0}")]
    Config(String),
}

/// What went wrong with a stream, where no task says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamProblem {
    #[error("as many as may be are under way")]
    Busy,
    #[error("no connection")]
    NotConnected,
    #[error("the connection broke")]
    Cut,
    #[error("it took too long")]
    TimedOut,
    #[error("the answer is no HTTP that can be understood")]
    Garbled,
    #[error("it was sent on to where it cannot go")]
    Redirect,
    #[error("what the pool exports is not {wanted} bytes long, as it says that the disk is")]
    Length { wanted: usize },
    #[error("a second answer came in the disk's place")]
    SecondAnswer,
    #[error("it has {0} bytes, more than are moved through memory: somebody made it larger")]
    TooLarge(usize),
    #[error("its task did not end, or is not known any more")]
    NoVerdict,
}

/// Why a certificate was refused, as far as a user can do something about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsProblem {
    /// `seen`: SHA-256 of the certificate shown, in hex.
    #[error("its fingerprint {seen} is none of those listed")]
    Pin { seen: String },
    #[error("it is signed by nobody who is trusted")]
    Untrusted,
    #[error("it is made out to another name")]
    Name,
    #[error("it is expired, or not valid yet")]
    Expired,
    #[error("{0}")]
    Other(String),
}

impl StreamProblem {
    /// The pool moved all that it has, and that is not the disk that was asked for: asked again, it is the same.
    pub fn is_of_the_disk(self) -> bool {
        match self {
            Self::Length { .. } | Self::SecondAnswer | Self::TooLarge(_) => true,
            Self::Busy
            | Self::NotConnected
            | Self::Cut
            | Self::TimedOut
            | Self::Garbled
            | Self::Redirect
            | Self::NoVerdict => false,
        }
    }
}

impl Error {
    pub fn fault(&self) -> Fault {
        match self {
            Error::Api(failure) => fault_of(failure),
            Error::NoCoordinator { source, .. } => source.fault(),
            Error::Tls { .. } | Error::Config(_) => Fault::Stalled,
            Error::NotConnected { .. }
            | Error::ConnectionLost { .. }
            | Error::Status { .. }
            | Error::Garbage { .. }
            | Error::Unreadable { .. }
            | Error::Behind
            | Error::NotLeading => Fault::Retry,
            Error::Stream { problem: StreamProblem::Busy, .. } => Fault::Wait,
            Error::Stream { .. } => Fault::Retry,
        }
    }

    /// A label for metrics: XAPI's code, or our word for what happened on the way.
    pub fn kind(&self) -> &str {
        match self {
            Error::NotConnected { .. } => "not-connected",
            Error::ConnectionLost { .. } => "connection-lost",
            Error::Tls { .. } => "tls",
            Error::Status { .. } => "status",
            Error::Garbage { .. } => "garbage",
            Error::Unreadable { .. } => "unreadable",
            Error::Behind => "behind",
            Error::Stream { .. } => "stream",
            Error::Api(failure) => &failure.code,
            Error::NoCoordinator { .. } => "no-coordinator",
            Error::NotLeading => "not-leading",
            Error::Config(_) => "config",
        }
    }

    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Error::Api(failure) => Some(failure),
            Error::NotConnected { .. }
            | Error::ConnectionLost { .. }
            | Error::Tls { .. }
            | Error::Status { .. }
            | Error::Garbage { .. }
            | Error::Unreadable { .. }
            | Error::Behind
            | Error::Stream { .. }
            | Error::NoCoordinator { .. }
            | Error::NotLeading
            | Error::Config(_) => None,
        }
    }

    pub fn is_code(&self, code: &str) -> bool {
        self.failure().is_some_and(|f| f.code == code)
    }

    /// The object named in the call does not exist (any more).
    pub fn is_gone(&self) -> bool {
        self.is_code("HANDLE_INVALID") || self.is_code("UUID_INVALID")
    }

    /// The pool knows us, or could, and does not let us in: other credentials are needed.
    pub fn is_refused(&self) -> bool {
        let at_the_door = |f: &Failure| f.params.first().is_some_and(|p| p == "session.login_with_password");
        self.is_code("SESSION_AUTHENTICATION_FAILED")
            || self.is_code("SESSION_AUTHORIZATION_FAILED")
            || self.is_code("RBAC_PERMISSION_DENIED") && self.failure().is_some_and(at_the_door)
    }

    /// False only where the call was surely not executed: never sent, or refused by XAPI.
    pub fn maybe_executed(&self) -> bool {
        match self {
            Error::ConnectionLost { .. } | Error::Status { .. } | Error::Garbage { .. } | Error::Stream { .. } => true,
            Error::NotConnected { .. }
            | Error::Tls { .. }
            | Error::Unreadable { .. }
            | Error::Behind
            | Error::Api(_)
            | Error::NoCoordinator { .. }
            | Error::NotLeading
            | Error::Config(_) => false,
        }
    }
}

/// The fault of a failure, whether a call or a task (`task.error_info`) brought it. Unknown codes are retried.
pub fn fault_of(failure: &Failure) -> Fault {
    super::codes::CODES.iter().find(|(code, _)| *code == failure.code).map_or(Fault::Retry, |(_, class)| class.fault())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_to_let_us_in_is_told_from_a_missing_right() {
        let rbac = |permission: &str| Error::Api(Failure::new("RBAC_PERMISSION_DENIED", [permission, "text"]));
        assert!(rbac("session.login_with_password").is_refused());
        assert!(!rbac("sr.scan").is_refused());
    }

    #[test]
    fn codes_nobody_knows_are_retried() {
        assert_eq!(fault_of(&Failure::new("RATE_LIMIT_OF_2031", [""])), Fault::Retry);
        assert_eq!(fault_of(&Failure::new("SR_BACKEND_FAILURE_9999", [""])), Fault::Retry);
    }
}
