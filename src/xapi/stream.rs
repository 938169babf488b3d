//! The fourth door: a disk's bytes in and out, over HTTPS (`PUT /import_raw_vdi`, `GET /export_raw_vdi`).
//!
//! Part of the client, used by `calls` alone. Spoken by hand, since no HTTP library sends the head, waits for the answer, and only then the
//! body: a host that does not see the disk's storage redirects, and nothing of the disk may go to a host whose certificate was not judged.
//! The pool answers 200 before it has looked at anything, and ends an export by closing. So nothing is believed but the task, which is ours:
//! made before, tagged as all our calls are, read when the stream is over, destroyed. The request's address bears the session: it is in no
//! error and no log.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::client::{CallRecord, Client, name};
use super::error::{Error, StreamProblem};
use super::model::{Task, TaskStatus};
use super::session::{Session, without_session};
use super::tls;
use super::wire::{Failure, Ref};
use crate::domain::identity::TASK_TAG;

/// The name of a stream's task. Its description is the operation.
const LABEL: &str = "Lamina config disk";
/// Bytes of a disk that is moved through memory: no config disk has more. Larger ones are refused.
pub const LARGEST: usize = 128 << 20;
/// Bytes of an answer's head.
const HEAD: usize = 16 << 10;
/// Hosts that are asked for one transfer.
const HOSTS: usize = 3;
/// Sent and received at a time, each within the time of a call.
const CHUNK: usize = 1 << 20;
/// Between two looks at the task.
const LOOK: Duration = Duration::from_millis(250);
/// How long the verdict on a stream that broke is waited for.
const BROKEN: Duration = Duration::from_secs(2);

type Connection = BufReader<TlsStream<TcpStream>>;

/// Which way the bytes go.
#[derive(Clone, Copy)]
enum Way<'a> {
    In(&'a [u8]),
    /// So many bytes, exactly.
    Out(usize),
}

impl Way<'_> {
    fn method(self) -> &'static str {
        match self {
            Self::In(_) => "PUT /import_raw_vdi",
            Self::Out(_) => "GET /export_raw_vdi",
        }
    }

    fn mutating(self) -> bool {
        matches!(self, Self::In(_))
    }
}

/// The head of an answer.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    location: Option<String>,
    /// `Transfer-Encoding` is there: the bytes that follow are not the disk's.
    encoded: bool,
}

impl Task {
    /// The operation that it is at work for.
    pub fn op(&self) -> Option<&String> {
        self.other_config.get(TASK_TAG).or_else(|| (self.name_label == LABEL).then_some(&self.name_description))
    }
}

impl Client {
    /// Replaces the first bytes of a detached disk.
    pub(super) async fn send_in(&self, vdi: &Ref, bytes: &[u8], op: &str) -> Result<(), Error> {
        self.transfer(Way::In(bytes), vdi, op).await.map(drop)
    }

    /// All bytes of a detached disk of this size.
    pub(super) async fn send_out(&self, vdi: &Ref, size: usize, op: &str) -> Result<Vec<u8>, Error> {
        self.transfer(Way::Out(size), vdi, op).await
    }

    async fn transfer(&self, way: Way<'_>, vdi: &Ref, op: &str) -> Result<Vec<u8>, Error> {
        let began = Instant::now();
        let result = self.judged(way, vdi, op).await;
        let record = CallRecord {
            method: way.method(),
            mutating: way.mutating(),
            op: Some(op),
            object: Some(vdi.as_str()),
            error: result.as_ref().err(),
            duration: began.elapsed(),
        };
        tracing::debug!(method = record.method, op, error = record.error.map(Error::kind), "transfer");
        (self.0.observer)(&record);
        result
    }

    /// Moves the bytes, and takes the task's word on it.
    async fn judged(&self, way: Way<'_>, vdi: &Ref, op: &str) -> Result<Vec<u8>, Error> {
        let Ok(_slot) = self.0.transfers.try_acquire() else {
            return Err(self.problem(None, StreamProblem::Busy));
        };
        let task = self.write().task_create(LABEL, op).await?;
        let until = Instant::now() + self.0.timeouts.transfer;
        let tagged = self.write().task_add_to_other_config(&task, TASK_TAG, op).await;
        // Only a pool-operator may: to others the description tells.
        let moved = match tagged.or_else(|e| if e.is_code("RBAC_PERMISSION_DENIED") { Ok(()) } else { Err(e) }) {
            Ok(()) => match timeout(self.0.timeouts.transfer, self.moved(way, vdi, &task)).await {
                Ok(moved) => moved,
                Err(_) => Err(self.problem(None, StreamProblem::TimedOut)),
            },
            Err(error) => Err(error),
        };
        let until = if moved.is_ok() { until } else { until.min(Instant::now() + BROKEN) };
        let verdict = match &moved {
            // Nothing was sent that anybody could judge.
            Err(Error::Tls { .. } | Error::NotLeading | Error::Api(_)) => Ok(None),
            Ok(_) | Err(_) => self.verdict(&task, until).await,
        };
        // Nobody else would end one that no stream came to, and a pending task stays for a day.
        if matches!(verdict, Ok(None)) {
            let _ = self.write().task_cancel(&task).await;
            let _ = self.write().task_set_status(&task, "cancelled").await;
        }
        let _ = self.write().task_destroy(&task).await;
        match (verdict?, moved) {
            (Some(Err(failure)), _) => Err(Error::Api(without_session(failure, self.current().as_deref()))),
            (Some(Ok(())), Ok(bytes)) => Ok(bytes),
            // Of how it looks nothing follows while nobody knows whether it was all.
            (None, Err(Error::Stream { problem: StreamProblem::Length { .. } | StreamProblem::SecondAnswer, .. })) => {
                Err(self.problem(None, StreamProblem::NoVerdict))
            }
            (Some(Ok(())) | None, Err(error)) => Err(error),
            (None, Ok(_)) => Err(self.problem(None, StreamProblem::NoVerdict)),
        }
    }

    /// How the task ended; `None`: it did not, or a pool that was started anew does not know it any more.
    async fn verdict(&self, task: &Ref, until: Instant) -> Result<Option<Result<(), Failure>>, Error> {
        loop {
            let row: Task = match self.read().get_record(task).await {
                Ok(row) => row,
                Err(error) if error.is_gone() => return Ok(None),
                Err(error) => return Err(error),
            };
            match row.status {
                TaskStatus::Success => return Ok(Some(Ok(()))),
                TaskStatus::Failure | TaskStatus::Cancelled => {
                    let cancelled = || Failure::new("TASK_CANCELLED", [task.as_str()]);
                    return Ok(Some(Err(Failure::from_list(&row.error_info).unwrap_or_else(cancelled))));
                }
                TaskStatus::Pending | TaskStatus::Cancelling | TaskStatus::Other => {}
            }
            if Instant::now() >= until {
                return Ok(None);
            }
            sleep(LOOK).await;
        }
    }

    /// Asks hosts until one takes the stream.
    async fn moved(&self, way: Way<'_>, vdi: &Ref, task: &Ref) -> Result<Vec<u8>, Error> {
        let session = self.session().await?;
        let size = match way {
            Way::In(bytes) => bytes.len(),
            Way::Out(size) => size,
        };
        if size > LARGEST {
            return Err(self.problem(Some(&session.url), StreamProblem::TooLarge(size)));
        }
        let mut host = session.url.clone();
        for _ in 0..HOSTS {
            let mut connection = self.dial(&host).await?;
            // The last moment before anything changes; asked again before each piece of the body.
            if way.mutating() && !(self.0.permit)() {
                return Err(Error::NotLeading);
            }
            let head = request(way, &host, &session, task, vdi);
            self.within(&host, connection.write_all(head.as_bytes())).await?;
            self.within(&host, connection.flush()).await?;
            let answer = self.answer(&host, &mut connection).await?;
            match (answer.status, &answer.location) {
                (200, _) if answer.encoded => return Err(self.problem(Some(&host), StreamProblem::Garbled)),
                (200, _) => {
                    return match way {
                        Way::In(bytes) => self.put(&host, &mut connection, bytes).await.map(|()| Vec::new()),
                        Way::Out(size) => self.get(&host, &mut connection, size).await,
                    };
                }
                (302, Some(to)) => {
                    let elsewhere = elsewhere(&host, to, way);
                    host = elsewhere.ok_or_else(|| self.problem(Some(&host), StreamProblem::Redirect))?;
                }
                (status, _) => return Err(Error::Status { endpoint: name(&host), status }),
            }
        }
        Err(self.problem(Some(&host), StreamProblem::Redirect))
    }

    /// A connection of its own to a host that is who it should be.
    async fn dial(&self, host: &Url) -> Result<Connection, Error> {
        let unfit = || self.problem(Some(host), StreamProblem::Redirect);
        let address = host.host_str().map(|h| h.trim_matches(['[', ']']).to_owned()).ok_or_else(unfit)?;
        let server = ServerName::try_from(address.clone()).map_err(|_| unfit())?;
        let port = host.port_or_known_default().unwrap_or(443);
        let connect = async {
            let tcp = TcpStream::connect((address.as_str(), port)).await?;
            TlsConnector::from(Arc::clone(&self.0.tls)).connect(server, tcp).await
        };
        let opened = timeout(self.0.timeouts.connect, connect).await;
        let failed = |error: Option<&std::io::Error>| match error.and_then(|e| tls::problem(e)) {
            Some(problem) => Error::Tls { endpoint: name(host), problem },
            None => self.problem(Some(host), StreamProblem::NotConnected),
        };
        match opened {
            Ok(Ok(stream)) => Ok(BufReader::new(stream)),
            Ok(Err(error)) => Err(failed(Some(&error))),
            Err(_) => Err(failed(None)),
        }
    }

    async fn answer(&self, host: &Url, connection: &mut Connection) -> Result<Answer, Error> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.within(host, connection.read_u8()).await?);
            if head.len() > HEAD {
                return Err(self.problem(Some(host), StreamProblem::Garbled));
            }
        }
        Answer::parse(&head).ok_or_else(|| self.problem(Some(host), StreamProblem::Garbled))
    }

    async fn put(&self, host: &Url, connection: &mut Connection, bytes: &[u8]) -> Result<(), Error> {
        for chunk in bytes.chunks(CHUNK) {
            if !(self.0.permit)() {
                return Err(Error::NotLeading);
            }
            self.within(host, connection.write_all(chunk)).await?;
        }
        self.within(host, connection.flush()).await?;
        // The pool closes when it has read all; how it closes means nothing.
        let mut rest = connection.take(HEAD as u64);
        let _ = rest.read_to_end(&mut Vec::new()).await;
        Ok(())
    }

    async fn get(&self, host: &Url, connection: &mut Connection, size: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::with_capacity(size);
        let mut chunk = vec![0; CHUNK];
        // One byte too many is enough to know.
        while bytes.len() <= size {
            let read = match timeout(self.0.timeouts.call, connection.read(&mut chunk)).await {
                Ok(Ok(read)) => read,
                // Closed without a farewell: length and task tell whether that was all.
                Ok(Err(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => 0,
                Ok(Err(_)) => return Err(self.problem(Some(host), StreamProblem::Cut)),
                Err(_) => return Err(self.problem(Some(host), StreamProblem::TimedOut)),
            };
            match chunk.get(..read) {
                None | Some([]) => break,
                Some(new) => bytes.extend_from_slice(new),
            }
        }
        match fault_in(&bytes, size) {
            None => Ok(bytes),
            Some(problem) => Err(self.problem(Some(host), problem)),
        }
    }

    async fn within<T>(&self, host: &Url, io: impl Future<Output = std::io::Result<T>>) -> Result<T, Error> {
        match timeout(self.0.timeouts.call, io).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(_)) => Err(self.problem(Some(host), StreamProblem::Cut)),
            Err(_) => Err(self.problem(Some(host), StreamProblem::TimedOut)),
        }
    }

    fn problem(&self, host: Option<&Url>, problem: StreamProblem) -> Error {
        let endpoint = host.map(name).or_else(|| self.endpoint()).unwrap_or_default();
        Error::Stream { endpoint, problem }
    }
}

impl Answer {
    fn parse(head: &[u8]) -> Option<Self> {
        let mut lines = std::str::from_utf8(head).ok()?.split("\r\n");
        let status = lines.next()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
        let headers: Vec<_> = lines.filter_map(|l| l.split_once(':')).collect();
        let header = |name: &str| headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim());
        let location = header("location").map(str::to_owned);
        Some(Self { status, location, encoded: header("transfer-encoding").is_some() })
    }
}

fn target(way: Way<'_>) -> &'static str {
    way.method().split_once(' ').map_or("", |(_, target)| target)
}

/// The head of the request: below the 1 KiB that xapi reads. The body has a length and no chunks, as it wants it.
fn request(way: Way<'_>, host: &Url, session: &Session, task: &Ref, vdi: &Ref) -> String {
    let length = match way {
        Way::In(bytes) => format!("Content-Length: {}\r\n", bytes.len()),
        Way::Out(_) => String::new(),
    };
    format!(
        "{}?session_id={}&task_id={task}&vdi={vdi}&format=raw HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n{length}\r\n",
        way.method(),
        session.reference,
        host.authority(),
    )
}

/// The host that a redirect names, if it is a redirect of this very request. Only its address is taken.
fn elsewhere(asked: &Url, to: &str, way: Way<'_>) -> Option<Url> {
    let mut to = Url::parse(to).ok()?;
    let same =
        to.scheme() == "https" && to.username().is_empty() && to.password().is_none() && to.path() == target(way);
    to.set_query(None);
    to.set_path(asked.path());
    (same && to != *asked).then_some(to)
}

/// What shows on an export by itself: a second answer in the disk's place, or another length.
fn fault_in(bytes: &[u8], size: usize) -> Option<StreamProblem> {
    // A handler that fails after its 200 writes its 500 into the body.
    if bytes.starts_with(b"HTTP/1.") {
        return Some(StreamProblem::SecondAnswer);
    }
    (bytes.len() != size).then_some(StreamProblem::Length { wanted: size })
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
