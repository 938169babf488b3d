//! Streams of disk content: `PUT /import_raw_vdi` and `GET /export_raw_vdi` (xapi.md 6).
//!
//! `serve` gives the bare connection of such a request, which [`tap::Tap`] found. Here it is read, let in or sent elsewhere, numbered, logged
//! and struck by faults as `rpc` does for calls; `import` and `export` carry it out. The handlers answer 200 before they know whether they
//! can: the verdict is the task's alone.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::faults::{Effect, Entry};
use super::schema::Type;
use super::{Answer, Pool, db::Db, placement, session, task};
use crate::xapi::wire::{Failure, Ref};

mod export;
mod head;
mod import;
pub mod tap;

use head::{Head, Kind};

/// Request line and headers together (xapi.md 1.1).
const HEADERS: usize = 1024;
/// What a late import has of its body: as much as buffers on the way may hold.
const BUFFERED: u64 = 4 << 20;
/// A peer may still be sending when it is answered; what comes within this time is read, so that the answer is not lost with a reset.
const DRAINED: Duration = Duration::from_millis(500);

/// How much of an answer reaches the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    Whole,
    Half,
    Lost,
}

/// What a fault leaves of a transfer: its answer's head, and so many hundredths of its body.
#[derive(Clone, Copy, Debug)]
struct Manner {
    reply: Reply,
    percent: u8,
}

/// What the connection shall do at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Close as one does.
    Close,
    /// Break.
    Cut,
}

/// A transfer that was let in.
struct Transfer {
    pool: Arc<Pool>,
    head: Head,
    /// `None`: the import makes one.
    vdi: Option<Ref>,
    sr: Ref,
    /// The host that was asked, and sees the SR.
    host: Ref,
    session: Ref,
    task: Ref,
}

/// Serves one request whose first bytes were read, and closes the connection, as the handlers of streams do (xapi.md 6.1).
pub async fn serve<S>(pool: Arc<Pool>, at: SocketAddr, stream: S, begun: Vec<u8>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut bytes = begun;
    let rest = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break bytes.split_off(end + 4);
        }
        if bytes.len() > HEADERS || !matches!(reader.read_buf(&mut bytes).await, Ok(1..)) {
            break Vec::new();
        }
    };
    let head = String::from_utf8(bytes).ok();
    let whole = head.as_ref().is_some_and(|text| text.ends_with("\r\n\r\n"));
    let mut body = std::io::Cursor::new(rest).chain(reader);
    let end = match head {
        Some(text) if text.len() > HEADERS => {
            write(&mut writer, &page("431 Request Header Fields Too Large", "", "")).await
        }
        Some(text) if whole => match Head::parse(&text) {
            Some(head) => let_in(&pool, at, head, &mut body, &mut writer).await,
            None => write(&mut writer, &page("500 Internal Server Error", "", "")).await,
        },
        Some(_) | None => End::Cut,
    };
    if end == End::Close {
        // A peer that is gone needs no farewell.
        let _ = writer.shutdown().await;
        let _ = tokio::time::timeout(DRAINED, tokio::io::copy(&mut body, &mut tokio::io::sink())).await;
    }
}

/// Session and role, then disk and place; what does not get past them is no call yet.
async fn let_in(
    pool: &Arc<Pool>,
    at: SocketAddr,
    head: Head,
    body: &mut (impl AsyncRead + Unpin),
    out: &mut (impl AsyncWrite + Unpin),
) -> End {
    let given = head.param("task_id").map(|task| Ref(task.to_owned()));
    let fail = |failure: Failure| {
        if let Some(task) = &given {
            task::finish(pool, task, &Err(failure), &Type::Void);
        }
    };
    if pool.faults.booting().is_some() {
        return write(out, &page("500 Internal Server Error", "", "")).await;
    }
    let Some(host) = host_at(&pool.db(), at) else { return End::Cut };
    let (session, visitor) = match authenticate(pool, &head, &host).await {
        Some(known) => known,
        None => {
            fail(Failure::new::<String>("SESSION_AUTHENTICATION_FAILED", []));
            return write(out, &page("401 Unauthorised", "WWW-Authenticate: Basic realm=\"XenServer\"\r\n", "")).await;
        }
    };
    let end = match session::check(pool, &session, head.kind.permission(), "vm-admin") {
        Err(refused) if refused.code == "RBAC_PERMISSION_DENIED" => {
            fail(refused);
            write(out, &page("403 Forbidden", "", "")).await
        }
        Err(refused) => {
            fail(refused);
            write(out, &page("401 Unauthorised", "WWW-Authenticate: Basic realm=\"XenServer\"\r\n", "")).await
        }
        Ok(()) => place(pool, at, head, &host, &session, (body, out)).await,
    };
    if visitor {
        pool.db().delete("session", &session);
    }
    end
}

/// A session that is there, or one for the length of this request (xapi.md 2.2).
async fn authenticate(pool: &Pool, head: &Head, host: &Ref) -> Option<(Ref, bool)> {
    if let Some(session) = head.param("session_id") {
        let session = Ref(session.to_owned());
        return pool.db().find("session", &session).map(|_| (session.clone(), false));
    }
    let (user, password) = head.basic.as_ref()?;
    let made = session::login(pool, host, user, password, "stream").await.ok()?;
    Some((Ref(made.as_str()?.to_owned()), true))
}

fn host_at(db: &Db, at: SocketAddr) -> Option<Ref> {
    let address = json!(at.ip().to_string());
    db.all("host").find(|(_, row)| row.get("address") == Some(&address)).map(|(host, _)| host.clone())
}

/// The disk that is named, by reference or uuid.
fn named(db: &Db, head: &Head) -> Option<Ref> {
    let vdi = head.param("vdi")?;
    let by_ref = Ref(vdi.to_owned());
    if db.find("VDI", &by_ref).is_some() { Some(by_ref) } else { db.by_uuid("VDI", vdi).ok() }
}

/// The repository that an import without a disk names.
fn repository(db: &Db, head: &Head) -> Option<Ref> {
    let by_ref = head.param("sr_id").map(|sr| Ref(sr.to_owned())).filter(|sr| db.find("SR", sr).is_some());
    by_ref.or_else(|| db.by_uuid("SR", head.param("sr_uuid")?).ok())
}

/// Looks the disk up, and sends the client to a host that sees it.
async fn place(
    pool: &Arc<Pool>,
    at: SocketAddr,
    head: Head,
    host: &Ref,
    session: &Ref,
    (body, out): (&mut (impl AsyncRead + Unpin), &mut (impl AsyncWrite + Unpin)),
) -> End {
    let found = {
        let db = pool.db();
        let vdi = named(&db, &head);
        let sr = match &vdi {
            Some(vdi) => db.link_to("VDI", vdi, "SR").ok(),
            None if head.kind == Kind::Import && head.param("vdi").is_none() => repository(&db, &head),
            None => None,
        };
        sr.map(|sr| {
            let mut seers: Vec<Ref> =
                db.all("host").map(|(h, _)| h.clone()).filter(|h| placement::sees(&db, h, &sr)).collect();
            seers.sort_by_key(|h| h != host);
            let seer = seers.into_iter().next();
            let address = seer.as_ref().and_then(|h| db.text("host", h, "address").ok().map(str::to_owned));
            (vdi, sr, seer, address.unwrap_or_default())
        })
    };
    // Nobody tells the task: the daemon gives up before it looks at it.
    let Some((vdi, sr, seer, address)) = found else {
        return write(out, &page("500 Internal Server Error", "", "HANDLE_INVALID: [ VDI ]")).await;
    };
    match seer {
        Some(seer) if seer == *host => {
            let transfer = Transfer {
                pool: Arc::clone(pool),
                head,
                vdi,
                sr,
                host: host.clone(),
                session: session.clone(),
                task: Ref::null(),
            };
            transfer.begin(body, out).await
        }
        // The task stays pending for the other host (xapi.md 6.1). Real hosts are always on 443; here a port must be said.
        Some(_) => {
            let address = if address.contains(':') { format!("[{address}]") } else { address };
            let port = if at.port() == 443 { String::new() } else { format!(":{}", at.port()) };
            let to = format!("Location: https://{address}{port}{}\r\n", head.target);
            write(out, &page("302 Found", &to, "")).await
        }
        None => {
            if let Some(task) = head.param("task_id") {
                let failure = Failure::new("SR_HAS_NO_PBDS", [sr.as_str()]);
                task::finish(pool, &Ref(task.to_owned()), &Err(failure), &Type::Void);
            }
            write(out, &page("500 Internal Server Error", "", "SR_HAS_NO_PBDS")).await
        }
    }
}

impl Transfer {
    /// From here on it is a call: numbered where it changes something, logged, struck by faults.
    async fn begin(mut self, body: &mut (impl AsyncRead + Unpin), out: &mut (impl AsyncWrite + Unpin)) -> End {
        let method = self.head.kind.method();
        self.pool.log.count(method);
        let number = (self.head.kind == Kind::Import).then(|| self.pool.log.take_number());
        let fault = self.pool.faults.strike(method, number);
        self.pool.log.push(Entry {
            number,
            method: method.to_owned(),
            params: vec![json!(self.vdi.as_ref().unwrap_or(&self.sr)), Value::Object(self.head.shown())],
            tags: self.head.tags.clone(),
            fault: fault.clone(),
            task: Ref::null(),
            outcome: None,
        });
        if fault == Some(Effect::Drop) {
            return End::Cut;
        }
        self.task = match self.head.param("task_id") {
            Some(task) => Ref(task.to_owned()),
            None => {
                let parent = self.head.param("subtask_of").map(|task| Ref(task.to_owned()));
                task::begin(&self.pool, self.head.kind.label(), &self.head.tags, parent.as_ref())
            }
        };
        let whole = Manner { reply: Reply::Whole, percent: 100 };
        let unheard = Manner { reply: Reply::Lost, percent: 100 };
        match fault {
            None => self.carry_out(number, body, out, whole).await,
            // The head is nearly all there is of an import's answer; an export's breaks off in the middle.
            Some(Effect::TruncateReply) if self.head.kind == Kind::Import => {
                self.carry_out(number, body, out, Manner { reply: Reply::Half, ..whole }).await;
                End::Cut
            }
            Some(Effect::TruncateReply) => self.carry_out(number, body, out, Manner { percent: 50, ..whole }).await,
            Some(Effect::CutBody(percent)) => {
                let end = self.carry_out(number, body, out, Manner { percent, ..whole }).await;
                // A client that sends sees its connection break; one that reads sees the end of the stream, and no more (xapi.md 6.2).
                if self.head.kind == Kind::Import { End::Cut } else { end }
            }
            Some(Effect::CutReply) => {
                self.carry_out(number, body, out, unheard).await;
                End::Cut
            }
            Some(Effect::ExecuteLate(after)) => {
                let mut held = Vec::new();
                let wanted = self.head.length.unwrap_or_default().min(BUFFERED);
                // What did not come is missing later.
                let _ = body.take(wanted).read_to_end(&mut held).await;
                let pool = Arc::clone(&self.pool);
                pool.spawn(async move {
                    self.pool.clock.sleep(after).await;
                    let mut body = std::io::Cursor::new(held);
                    self.carry_out(number, &mut body, &mut tokio::io::sink(), unheard).await;
                });
                End::Cut
            }
            Some(Effect::Refuse(failure)) => {
                let head = self.accepted();
                let text = if self.head.kind == Kind::Export { inner(&failure) } else { String::new() };
                self.finish(number, &Err(failure));
                write(out, &(head + &text)).await
            }
            Some(Effect::Drop) => End::Cut,
        }
    }

    async fn carry_out(
        &self,
        number: Option<u64>,
        body: &mut (impl AsyncRead + Unpin),
        out: &mut (impl AsyncWrite + Unpin),
        manner: Manner,
    ) -> End {
        let answer = match self.unsupported() {
            Some(what) => {
                write(out, &page("404 Not Found", "", &what)).await;
                Err(Failure::new("INTERNAL_ERROR", [what]))
            }
            None => {
                let head = self.accepted();
                match manner.reply {
                    Reply::Whole => write(out, &head).await,
                    Reply::Half => write(out, head.get(..head.len() / 2).unwrap_or_default()).await,
                    Reply::Lost => End::Cut,
                };
                match self.head.kind {
                    Kind::Import => import::run(self, body, manner).await,
                    Kind::Export => export::run(self, out, manner).await,
                }
            }
        };
        self.finish(number, &answer);
        End::Close
    }

    /// What these handlers know and this simulator, or the real one, does not do.
    fn unsupported(&self) -> Option<String> {
        match self.head.param("format").unwrap_or("raw") {
            "raw" if self.head.kind == Kind::Import && self.head.encoded => Some("Cannot handle encoding".to_owned()),
            "raw" if self.head.param("chunked").is_some() => Some("Cannot handle chunks".to_owned()),
            "raw" if self.head.param("base").is_some() => Some("Cannot export a difference".to_owned()),
            "raw" => None,
            other => Some(format!("Unknown format {other}")),
        }
    }

    /// The early 200: neither length nor chunks (xapi.md 6.2).
    fn accepted(&self) -> String {
        let file = match (self.head.kind, &self.vdi) {
            (Kind::Export, Some(vdi)) => {
                let uuid = self.pool.db().text("VDI", vdi, "uuid").unwrap_or_default().to_owned();
                format!("Content-Disposition: attachment; filename=\"{uuid}.raw\"\r\n")
            }
            (Kind::Export | Kind::Import, _) => String::new(),
        };
        format!(
            "HTTP/1.1 200 OK\r\nConnection: close\r\nCache-Control: no-cache, no-store\r\ntask-id: {}\r\n\
            Content-Type: application/octet-stream\r\n{file}\r\n",
            self.task
        )
    }

    fn finish(&self, number: Option<u64>, answer: &Answer) {
        if let Some(number) = number {
            self.pool.log.ended(number, &self.task, answer);
        }
        let kind = match self.head.kind {
            Kind::Import => Type::Ref("VDI".to_owned()),
            Kind::Export => Type::Void,
        };
        task::finish(&self.pool, &self.task, answer, &kind);
    }
}

/// Any failure of the tool that moves the bytes (xapi.md 6.2).
fn broken() -> Failure {
    Failure::new("VDI_IO_ERROR", ["Device I/O errors"])
}

/// The second answer inside a body whose first said 200 (xapi.md 6.2, 14).
fn inner(failure: &Failure) -> String {
    page("500 Internal Server Error", "", &format!("{}: [ {} ]", failure.code, failure.params.join("; ")))
}

fn page(status: &str, headers: &str, text: &str) -> String {
    let body = format!("<html><body><h1>HTTP {status}</h1>{text}</body></html>");
    format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nCache-Control: no-cache, no-store\r\n{headers}Content-Type: text/html\r\n\
        Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A client that is gone does not stop what it began.
async fn write(out: &mut (impl AsyncWrite + Unpin), text: &str) -> End {
    let sent = async {
        out.write_all(text.as_bytes()).await?;
        out.flush().await
    };
    if sent.await.is_ok() { End::Close } else { End::Cut }
}
