//! The XAPI client of one Connector: log-in, session, coordinator, and three doors for calls.
//!
//! * **read**: changes nothing; connections are pooled.
//! * **write**: changes the database only, synchronous.
//! * **start**: reaches storage or hypervisor; always `Async.`, tagged, returns the task.
//!
//! Changing calls never share a connection and are never repeated by the HTTP library: a second clone is a second disk.
//! The client itself repeats a call only after `SESSION_INVALID` or `HOST_IS_SLAVE`, which say that nothing was executed.
//! Everything else goes to the caller, who looks before acting again. The doors are open to this room only: which calls
//! exist is said in `calls`. Disk streams will come as a fourth door. Passwords and sessions never leave this file.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::Url;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::error::Error;
use super::tls::{self, Tls};
use super::wire::{Failure, Ref, Reply, Request, standard_json};

/// A pool stays responsive to its other users; the event stream is not counted.
const CALLS_IN_FLIGHT: usize = 20;

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

#[derive(Clone, Debug)]
pub struct Timeouts {
    pub connect: Duration,
    /// From sending to the last byte of the reply.
    pub call: Duration,
    /// What an `event.from` may take beyond its own time-out.
    pub poll_grace: Duration,
    /// How long a refused pair of credentials is not sent again: a host takes 5 s to say no, and may lock an account.
    pub refused: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            call: Duration::from_secs(30),
            poll_grace: Duration::from_secs(15),
            refused: Duration::from_secs(30),
        }
    }
}

/// What one call did, for metrics and the audit log. Holds no secret.
#[derive(Debug)]
pub struct CallRecord<'a> {
    /// As sent, e.g. `Async.VDI.clone`.
    pub method: &'a str,
    pub mutating: bool,
    pub op: Option<&'a str>,
    /// The first parameter, if it is a reference: the object called upon.
    pub object: Option<&'a str>,
    pub error: Option<&'a Error>,
    pub duration: Duration,
}

pub struct Options {
    /// `https://host[:port]`, tried in this order.
    pub endpoints: Vec<String>,
    pub credentials: Credentials,
    pub tls: Tls,
    /// Unique for an instance of the operator: xapi drops the oldest sessions of an originator that has too many.
    pub originator: String,
    pub timeouts: Timeouts,
    /// Asked right before each changing call is sent; false ends it with [`Error::NotLeading`].
    pub permit: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Told of each call after its end, log-ins included.
    pub observer: Arc<dyn Fn(&CallRecord<'_>) + Send + Sync>,
}

/// Cheap to clone; all clones share session and limits.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    endpoints: Vec<Url>,
    originator: String,
    timeouts: Timeouts,
    permit: Arc<dyn Fn() -> bool + Send + Sync>,
    observer: Arc<dyn Fn(&CallRecord<'_>) + Send + Sync>,
    pooled: reqwest::Client,
    /// One connection a call.
    single: reqwest::Client,
    slots: Semaphore,
    session: Mutex<Option<Arc<Session>>>,
    /// Held while logging in, so that one does it for all.
    door: tokio::sync::Mutex<Door>,
}

/// What is known about getting in.
struct Door {
    credentials: Credentials,
    /// The last log-in that failed.
    failed: Option<(Instant, Error)>,
    /// Where the coordinator was last found, other than at a listed endpoint.
    named: Option<Url>,
}

/// A log-in; compared by identity. The reference is as good as the password and is therefore never printed.
pub(super) struct Session {
    url: Url,
    reference: Ref,
}

/// One call, but for its session.
struct Call<'a> {
    method: &'a str,
    params: &'a [Value],
    op: Option<&'a str>,
    mutating: bool,
    timeout: Duration,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.endpoint()).finish()
    }
}

impl Client {
    /// No I/O: the first call logs in.
    pub fn new(options: Options) -> Result<Self, Error> {
        let tls = tls::config(&options.tls)?;
        let http = || {
            reqwest::Client::builder()
                .tls_backend_preconfigured(tls.clone())
                .connect_timeout(options.timeouts.connect)
                .redirect(reqwest::redirect::Policy::none())
                .retry(reqwest::retry::never())
                // The pool's own network: a proxy between would only hide what happened to a call.
                .no_proxy()
                .http1_only()
        };
        let build = |b: reqwest::ClientBuilder| b.build().map_err(|e| Error::Config(format!("no HTTP client: {e}")));
        Ok(Self(Arc::new(Inner {
            endpoints: options.endpoints.iter().map(|e| endpoint(e)).collect::<Result<_, _>>()?,
            originator: options.originator,
            pooled: build(http())?,
            single: build(http().pool_max_idle_per_host(0))?,
            timeouts: options.timeouts,
            permit: options.permit,
            observer: options.observer,
            slots: Semaphore::new(CALLS_IN_FLIGHT),
            session: Mutex::new(None),
            door: tokio::sync::Mutex::new(Door { credentials: options.credentials, failed: None, named: None }),
        })))
    }

    /// Where we are logged in, as `https://host:port`.
    pub fn endpoint(&self) -> Option<String> {
        self.current().map(|s| name(&s.url))
    }

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

    /// Gives the session back. Tasks under way go on; whatever else used it logs in again.
    pub async fn logout(&self) {
        let session = self.lock().take();
        if let Some(session) = session {
            let call = self.call("session.logout", &[]);
            // A session that cannot be given back dies of idleness.
            let _: Result<serde::de::IgnoredAny, _> = self.post(&session.url, Some(&session), &call).await;
        }
    }

    /// The door for calls that change nothing.
    pub(super) async fn send_read<T: DeserializeOwned>(&self, method: &str, params: &[Value]) -> Result<T, Error> {
        self.send(self.call(method, params)).await
    }

    /// A read whose parameter is our session itself.
    pub(super) async fn send_read_of_session<T: DeserializeOwned>(&self, method: &str) -> Result<T, Error> {
        let session = self.session().await?;
        self.send_read(method, &[json!(session.reference)]).await
    }

    /// The door for calls that change the database only.
    pub(super) async fn send_write<T: DeserializeOwned>(&self, method: &str, params: &[Value]) -> Result<T, Error> {
        self.send(Call { mutating: true, ..self.call(method, params) }).await
    }

    /// The door for calls that reach storage or hypervisor. The task bears the tag from its first moment on, as
    /// `other_config["http:lamina-op"]`.
    pub(super) async fn send_tagged(&self, method: &str, params: &[Value], op: &str) -> Result<Ref, Error> {
        self.send(Call { mutating: true, op: Some(op), ..self.call(&format!("Async.{method}"), params) }).await
    }

    /// The door for `event.from`. A token belongs to the session it was got in: in another one it is emptied, which asks for
    /// a dump. A lost session is reported, not mended.
    pub(super) async fn send_poll<T: DeserializeOwned>(
        &self,
        classes: &[&str],
        token: &mut Token,
        timeout: Duration,
    ) -> Result<T, Error> {
        let session = self.session().await?;
        if token.session.as_ref().is_none_or(|s| !Arc::ptr_eq(s, &session)) {
            *token = Token { session: Some(session.clone()), text: String::new() };
        }
        let params = [json!(classes), json!(token.text), json!(timeout.as_secs_f64())];
        let call = Call { timeout: timeout + self.0.timeouts.poll_grace, ..self.call("event.from", &params) };
        let result = self.post(&session.url, Some(&session), &call).await;
        if let Err(error) = &result
            && session_is_over(error)
        {
            self.forget(&session);
        }
        result
    }

    fn call<'a>(&self, method: &'a str, params: &'a [Value]) -> Call<'a> {
        Call { method, params, op: None, mutating: false, timeout: self.0.timeouts.call }
    }

    /// Sends a call in our session. Not executed because the session was over: once more in a new one.
    async fn send<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, Error> {
        let _slot = self.0.slots.acquire().await;
        let session = self.session().await?;
        match self.post(&session.url, Some(&session), &call).await {
            Err(error) if session_is_over(&error) => {
                self.forget(&session);
                let session = self.session().await?;
                self.post(&session.url, Some(&session), &call).await
            }
            done => done,
        }
    }

    async fn session(&self) -> Result<Arc<Session>, Error> {
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

    /// Sends one request, once, and tells the observer.
    async fn post<T: DeserializeOwned>(
        &self,
        url: &Url,
        session: Option<&Session>,
        call: &Call<'_>,
    ) -> Result<T, Error> {
        let began = Instant::now();
        let result = self.exchange(url, session, call).await;
        // The object of a call of this class is a session, which is a secret.
        let object = call.params.first().filter(|_| !call.method.starts_with("session.")).and_then(Value::as_str);
        let record = CallRecord {
            method: call.method,
            mutating: call.mutating,
            op: call.op,
            object: object.filter(|o| o.starts_with("OpaqueRef:")),
            error: result.as_ref().err(),
            duration: began.elapsed(),
        };
        tracing::debug!(method = record.method, op = record.op, error = record.error.map(Error::kind), "call");
        (self.0.observer)(&record);
        result
    }

    async fn exchange<T: DeserializeOwned>(
        &self,
        url: &Url,
        session: Option<&Session>,
        call: &Call<'_>,
    ) -> Result<T, Error> {
        let garbage = |e| Error::Garbage { endpoint: name(url), source: Arc::new(e) };
        let params: Vec<Value> =
            session.map(|s| json!(s.reference)).into_iter().chain(call.params.iter().cloned()).collect();
        let body = serde_json::to_vec(&Request { jsonrpc: "2.0", id: 1, method: call.method, params: &params })
            .map_err(garbage)?;
        // Request line and headers stay far below the 1 KiB at which xapi refuses them.
        let http = if call.mutating { &self.0.single } else { &self.0.pooled };
        let mut request = http
            .post(url.clone())
            .timeout(call.timeout)
            .header(reqwest::header::CONTENT_TYPE, "application/json")
            .body(body);
        if let Some(op) = call.op {
            request = request.header("X-Http-Other-Config-lamina-op", op);
        }
        // The last moment before sending. When sessions become the fence between two controllers, the proof that this
        // session is the recorded one belongs here too.
        if call.mutating && !(self.0.permit)() {
            return Err(Error::NotLeading);
        }
        let response = request.send().await.map_err(|e| transport(url, e))?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(Error::Status { endpoint: name(url), status: response.status().as_u16() });
        }
        let text = response.bytes().await.map_err(|e| transport(url, e))?;
        let reply: Reply<T> = serde_json::from_slice(&standard_json(&text)).map_err(garbage)?;
        match reply.outcome() {
            Some(Ok(result)) => Ok(result),
            Some(Err(failure)) => Err(Error::Api(without_session(failure, session))),
            None => Err(garbage(serde::de::Error::custom("neither result nor error"))),
        }
    }

    fn current(&self) -> Option<Arc<Session>> {
        self.lock().clone()
    }

    /// Drops a session found dead, unless somebody has put a new one in its place.
    fn forget(&self, dead: &Arc<Session>) {
        let mut session = self.lock();
        if session.as_ref().is_some_and(|s| Arc::ptr_eq(s, dead)) {
            *session = None;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<Session>>> {
        self.0.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the stream of events: good in one session only, since restarts and coordinator changes end both.
#[derive(Clone, Default)]
pub(super) struct Token {
    session: Option<Arc<Session>>,
    /// Empty: from the start, which is a dump of everything.
    pub(super) text: String,
}

fn endpoint(text: &str) -> Result<Url, Error> {
    Url::parse(text)
        .ok()
        .filter(|url| url.scheme() == "https" && url.has_host())
        .and_then(|url| url.join("/jsonrpc").ok())
        .ok_or_else(|| Error::Config(format!("{text:?} is no https address")))
}

/// As users write it.
fn name(url: &Url) -> String {
    url.origin().ascii_serialization()
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
fn session_is_over(error: &Error) -> bool {
    error.is_code("SESSION_INVALID") || error.is_code("HOST_IS_SLAVE")
}

fn transport(url: &Url, error: reqwest::Error) -> Error {
    let endpoint = name(url);
    if !error.is_connect() {
        return Error::ConnectionLost { endpoint, source: Arc::new(error) };
    }
    match tls::problem(&error) {
        Some(problem) => Error::Tls { endpoint, problem },
        None => Error::NotConnected { endpoint, source: Arc::new(error) },
    }
}

/// xapi repeats the session in some failures: `SESSION_INVALID [session]`, `HANDLE_INVALID ["session", session]`.
fn without_session(failure: Failure, session: Option<&Session>) -> Failure {
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
    fn only_https_addresses_are_endpoints() {
        for bad in ["http://xen1", "xen1", "https://", "/jsonrpc", ""] {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_password_is_never_printed() {
        let credentials = Credentials { username: "root".to_owned(), password: "hunter2".to_owned() };
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }
}
