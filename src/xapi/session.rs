//! Getting into a pool and staying there: credentials, the log-in, the session, and which host is the coordinator.
//!
//! Part of the client, used by `client` alone but for [`Credentials`] and [`Token`]. Passwords and sessions are never
//! printed, and a session is blanked out of the failures that repeat it.

use std::fmt;
use std::sync::{Arc, PoisonError};

use reqwest::Url;
use serde_json::json;
use tokio::time::Instant;

use super::client::{Client, name};
use super::error::Error;
use super::wire::{Failure, Ref};

/// What xapi asks for as the version of the API; it ignores the value.
const API_VERSION: &str = "1.0";

#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// What is known about getting in.
pub(super) struct Door {
    credentials: Credentials,
    /// The last log-in that failed.
    failed: Option<(Instant, Error)>,
    /// Where the coordinator was last found, other than at a listed endpoint.
    named: Option<Url>,
}

impl Door {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self { credentials, failed: None, named: None }
    }
}

/// A log-in; compared by identity. The reference is as good as the password and is therefore never printed.
pub(super) struct Session {
    pub(super) url: Url,
    pub(super) reference: Ref,
}

/// A place in the stream of events: good in one session only, since restarts and coordinator changes end both.
#[derive(Clone, Default)]
pub(super) struct Token {
    session: Option<Arc<Session>>,
    /// Empty: from the start, which is a dump of everything.
    pub(super) text: String,
}

impl Token {
    /// Keeps the place if this is still the session it was got in.
    pub(super) fn enter(&mut self, session: &Arc<Session>) {
        if self.session.as_ref().is_none_or(|s| !Arc::ptr_eq(s, session)) {
            *self = Self { session: Some(session.clone()), text: String::new() };
        }
    }

    pub(super) fn of(session: &Arc<Session>, text: String) -> Self {
        Self { session: Some(session.clone()), text }
    }

    /// Only places of one session can be compared: a daemon that died uncleanly counts some of its generations again.
    pub(super) fn is_of_session_of(&self, other: &Self) -> bool {
        matches!((&self.session, &other.session), (Some(a), Some(b)) if Arc::ptr_eq(a, b))
    }

    /// Has the stream shown all that the pool did before `barrier` was given? Places are ordered as texts, by XAPI's promise.
    pub(super) fn is_past(&self, barrier: &Self) -> bool {
        self.is_of_session_of(barrier) && self.text > barrier.text
    }
}

impl Client {
    /// Takes new credentials into use: false if they are the ones in use. Otherwise the old session is logged out, and the
    /// next call logs in.
    pub async fn set_credentials(&self, credentials: Credentials) -> bool {
        let mut door = self.0.door.lock().await;
        if door.credentials == credentials {
            return false;
        }
        door.credentials = credentials;
        door.failed = None;
        drop(door);
        self.logout().await;
        true
    }

    /// Gives the session back, at the latest when the process ends. Tasks under way go on; whatever else used it logs in again.
    pub async fn logout(&self) {
        let session = self.lock().take();
        if let Some(session) = session {
            self.give_back(&session).await;
        }
    }

    async fn give_back(&self, session: &Session) {
        let call = self.call("session.logout", &[]);
        // A session that cannot be given back dies of idleness.
        let _: Result<serde::de::IgnoredAny, _> = self.post(&session.url, Some(session), &call).await;
    }

    /// What a session that begins now may do: calls in lower case, e.g. `sr.scan`; none: the local root, who is above roles. A session keeps
    /// the rights that it began with, so only another one, given back at once, tells of a role that was given since.
    pub async fn rights_anew(&self) -> Result<Option<Vec<String>>, Error> {
        let _slot = self.0.slots.acquire().await;
        let url = self.session().await?.url.clone();
        let credentials = self.0.door.lock().await.credentials.clone();
        let session = self.log_in_at(&url, &credentials).await?;
        let own = [json!(session.reference)];
        let rights = async {
            if self.post(&url, Some(&session), &self.call("session.get_is_local_superuser", &own)).await? {
                return Ok(None);
            }
            self.post(&url, Some(&session), &self.call("session.get_rbac_permissions", &own)).await.map(Some)
        };
        let rights = rights.await;
        self.give_back(&session).await;
        rights
    }

    pub(super) async fn session(&self) -> Result<Arc<Session>, Error> {
        let asked = Instant::now();
        if let Some(session) = self.current() {
            return Ok(session);
        }
        let mut door = self.0.door.lock().await;
        if let Some(session) = self.current() {
            return Ok(session);
        }
        if let Some((at, error)) = &door.failed {
            let still_refused = error.is_refused() && at.elapsed() < self.0.timeouts.refused;
            // Whoever waited while another tried, takes that one's answer: twenty callers, one attempt.
            if still_refused || *at > asked {
                return Err(error.clone());
            }
        }
        match self.log_in(&mut door).await {
            Ok(session) => {
                let session = Arc::new(session);
                *self.lock() = Some(session.clone());
                door.failed = None;
                tracing::info!(endpoint = name(&session.url), "logged in");
                Ok(session)
            }
            Err(error) => {
                door.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// The listed endpoints first, whose certificates are made out to what the user wrote; then the address by which a
    /// member names its coordinator, or by which it was last found. A member is asked once.
    async fn log_in(&self, door: &mut Door) -> Result<Session, Error> {
        let mut first = None;
        let mut named = None;
        for url in &self.0.endpoints {
            match self.log_in_at(url, &door.credentials).await {
                Err(error) if error.is_refused() => return Err(error),
                Err(error) => match coordinator(&error, url) {
                    Some(url) => named = Some(url),
                    None => first = first.or(Some(error)),
                },
                done => return done,
            }
        }
        if let Some(url) = named {
            match self.log_in_at(&url, &door.credentials).await {
                Err(Error::Api(failure)) if failure.code != "HOST_IS_SLAVE" => return Err(Error::Api(failure)),
                Err(source) => return Err(Error::NoCoordinator { named: name(&url), source: Box::new(source) }),
                Ok(session) => {
                    door.named = Some(url);
                    return Ok(session);
                }
            }
        }
        let error = first.unwrap_or_else(|| Error::Config("no endpoint is listed".to_owned()));
        match &door.named {
            Some(url) => self.log_in_at(url, &door.credentials).await.map_err(|_| error),
            None => Err(error),
        }
    }

    async fn log_in_at(&self, url: &Url, credentials: &Credentials) -> Result<Session, Error> {
        let Credentials { username, password } = credentials;
        let params = [json!(username), json!(password), json!(API_VERSION), json!(self.0.originator)];
        let reference = self.post(url, None, &self.call("session.login_with_password", &params)).await?;
        Ok(Session { url: url.clone(), reference })
    }

    pub(super) fn current(&self) -> Option<Arc<Session>> {
        self.lock().clone()
    }

    /// Drops a session found dead, unless somebody has put a new one in its place.
    pub(super) fn forget(&self, dead: &Arc<Session>) {
        let mut session = self.lock();
        if session.as_ref().is_some_and(|s| Arc::ptr_eq(s, dead)) {
            *session = None;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<Session>>> {
        self.0.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a member says its coordinator is: an address without a port, IPv6 without brackets.
fn coordinator(error: &Error, asked: &Url) -> Option<Url> {
    let address = error.failure().filter(|f| f.code == "HOST_IS_SLAVE")?.params.first()?;
    let mut url = asked.clone();
    let bracketed = format!("[{address}]");
    url.set_host(Some(if address.contains(':') { &bracketed } else { address })).ok()?;
    Some(url)
}

/// Refused before anything was done: the session is unknown, or its host is the coordinator no more.
pub(super) fn session_is_over(error: &Error) -> bool {
    error.is_code("SESSION_INVALID") || error.is_code("HOST_IS_SLAVE")
}

/// xapi repeats the session in some failures: `SESSION_INVALID [session]`, `HANDLE_INVALID ["session", session]`.
pub(super) fn without_session(failure: Failure, session: Option<&Session>) -> Failure {
    let about_session = failure.code == "SESSION_INVALID" || failure.params.first().is_some_and(|p| p == "session");
    let secret = |p: &String| {
        about_session && p.starts_with("OpaqueRef:") || session.is_some_and(|s| p.contains(s.reference.as_str()))
    };
    let blank = |p: String| if secret(&p) { "(a session)".to_owned() } else { p };
    Failure { params: failure.params.into_iter().map(blank).collect(), code: failure.code }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xapi::client::endpoint;

    #[test]
    fn the_coordinator_keeps_the_port_and_gets_its_brackets() {
        let asked = endpoint("https://xen1.example.com:8443").unwrap();
        let at = |address: &str| {
            let error = Error::Api(Failure::new("HOST_IS_SLAVE", [address]));
            coordinator(&error, &asked).map(|url| url.to_string())
        };
        assert_eq!(at("192.0.2.7").unwrap(), "https://192.0.2.7:8443/jsonrpc");
        assert_eq!(at("2001:db8::7").unwrap(), "https://[2001:db8::7]:8443/jsonrpc");
        assert_eq!(at("not an address"), None);
    }

    #[test]
    fn a_password_is_never_printed() {
        let credentials = Credentials { username: "root".to_owned(), password: "hunter2".to_owned() };
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }
}
