//! The XAPI client of one Connector: log-in, session, coordinator, and four doors for calls.
//!
//! * **read**: changes nothing; connections are pooled.
//! * **write**: changes the database only, synchronous.
//! * **start**: reaches storage or hypervisor; always `Async.`, tagged, returns the task.
//! * **stream**: a disk's bytes in or out (`stream`), judged by a task of our own.
//!
//! Changing calls never share a connection and are never repeated by the HTTP library: a second clone is a second disk.
//! The client itself repeats a call only after `SESSION_INVALID` or `HOST_IS_SLAVE`, which say that nothing was executed.
//! Everything else goes to the caller, who looks before acting again. The doors are open to this room only: which calls
//! exist is said in `calls`.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::Url;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::error::Error;
pub use super::session::Credentials;
use super::session::{Door, Session, Token, session_is_over, without_session};
use super::tls;
pub use super::tls::Tls;
use super::wire::{Ref, Reply, Request, standard_json};

/// A pool stays responsive to its other users; the event stream is not counted.
const CALLS_IN_FLIGHT: usize = 20;
/// Streams go through the control domain's processors, which are few. One more is refused.
pub const TRANSFERS_IN_FLIGHT: usize = 2;

#[derive(Clone, Debug)]
pub struct Timeouts {
    pub connect: Duration,
    /// From sending to the last byte of the reply.
    pub call: Duration,
    /// What an `event.from` may take beyond its own time-out.
    pub poll_grace: Duration,
    /// How long a refused pair of credentials is not sent again: a host takes 5 s to say no, and may lock an account.
    pub refused: Duration,
    /// From the first connection of a stream to the verdict on it.
    pub transfer: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            call: Duration::from_secs(30),
            poll_grace: Duration::from_secs(15),
            refused: Duration::from_secs(30),
            transfer: Duration::from_secs(900),
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
pub struct Client(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) endpoints: Vec<Url>,
    pub(super) originator: String,
    pub(super) timeouts: Timeouts,
    pub(super) permit: Arc<dyn Fn() -> bool + Send + Sync>,
    pub(super) observer: Arc<dyn Fn(&CallRecord<'_>) + Send + Sync>,
    pub(super) tls: Arc<rustls::ClientConfig>,
    pooled: reqwest::Client,
    /// One connection a call.
    single: reqwest::Client,
    pub(super) slots: Semaphore,
    pub(super) transfers: Semaphore,
    pub(super) session: Mutex<Option<Arc<Session>>>,
    /// Held while logging in, so that one does it for all.
    pub(super) door: tokio::sync::Mutex<Door>,
}

/// One call, but for its session.
pub(super) struct Call<'a> {
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
            transfers: Semaphore::new(TRANSFERS_IN_FLIGHT),
            tls: Arc::new(tls.clone()),
            session: Mutex::new(None),
            door: tokio::sync::Mutex::new(Door::new(options.credentials)),
        })))
    }

    /// Where we are logged in, as `https://host:port`.
    pub fn endpoint(&self) -> Option<String> {
        self.current().map(|s| name(&s.url))
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
        token.enter(&session);
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

    /// A place in the stream of events that is later than all that happened before: `event.inject`, which changes nothing. A lost
    /// session is reported, not mended.
    pub(super) async fn barrier(&self, class: &str, object: &Ref) -> Result<Token, Error> {
        let _slot = self.0.slots.acquire().await;
        let session = self.session().await?;
        let params = [json!(class), json!(object)];
        let result = self.post(&session.url, Some(&session), &self.call("event.inject", &params)).await;
        if result.as_ref().is_err_and(session_is_over) {
            self.forget(&session);
        }
        Ok(Token::of(&session, result?))
    }

    pub(super) fn call_timeout(&self) -> Duration {
        self.0.timeouts.call
    }

    pub(super) fn call<'a>(&self, method: &'a str, params: &'a [Value]) -> Call<'a> {
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

    /// Sends one request, once, and tells the observer.
    pub(super) async fn post<T: DeserializeOwned>(
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
}

pub(super) fn endpoint(text: &str) -> Result<Url, Error> {
    Url::parse(text)
        .ok()
        .filter(|url| {
            url.scheme() == "https" && url.has_host() && url.username().is_empty() && url.password().is_none()
        })
        .and_then(|url| url.join("/jsonrpc").ok())
        // What stands before an @ may be a password.
        .ok_or_else(|| Error::Config(format!("{:?} is no https address", text.rsplit('@').next().unwrap_or_default())))
}

/// As users write it.
pub(super) fn name(url: &Url) -> String {
    url.origin().ascii_serialization()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_addresses_are_endpoints() {
        for bad in ["http://xen1", "xen1", "https://", "/jsonrpc", "", "https://root:hunter2@xen1"] {
            let error = endpoint(bad).unwrap_err().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
