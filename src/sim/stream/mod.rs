//! Streams of disk content: `PUT /import_raw_vdi` and `GET /export_raw_vdi` (xapi.md 6).
//!
//! `serve` gives the bare connection of such a request, which [`tap::Tap`] found, to [`door`]. What gets past it is numbered here, logged
//! and struck by faults as `rpc` does with calls; `import` and `export` carry it out. The handlers answer 200 before they know whether they
//! can: the verdict is the task's alone.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::faults::{Effect, Entry};
use super::schema::Type;
use super::{Answer, Pool, task};
use crate::xapi::wire::{Failure, Ref};

pub mod door;
mod export;
mod head;
mod import;
pub mod tap;

use head::{Head, Kind};

/// What a late import has of its body: as much as buffers on the way may hold.
const BUFFERED: u64 = 4 << 20;
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

impl Transfer {
    /// From here on it is a call: numbered, since it has a task at least, logged, struck by faults.
    async fn begin(mut self, body: &mut (impl AsyncRead + Unpin), out: &mut (impl AsyncWrite + Unpin)) -> End {
        let method = self.head.kind.method();
        self.pool.log.count(method);
        let number = self.pool.log.take_number();
        let fault = self.pool.faults.strike(method, Some(number));
        self.pool.log.push(Entry {
            number: Some(number),
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
            Some(Effect::Refuse(failure) | Effect::FailTask(failure)) => {
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
        number: u64,
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

    fn finish(&self, number: u64, answer: &Answer) {
        self.pool.log.ended(number, &self.task, answer);
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
