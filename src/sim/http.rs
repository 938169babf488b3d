//! HTTP as XAPI's own server speaks it (xapi.md 1.1, 1.2): small headers, sized bodies, 200 for API errors, an HTML page for nonsense.
//!
//! Called by [`super::serve`] for each request of a TLS connection; reads JSON-RPC 1.0 and 2.0 and XML-RPC and gives calls to [`super::rpc`].

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use http_body_util::{BodyExt, Full, Limited, StreamBody, combinators::BoxBody};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use hyper::{HeaderMap, Method, Response, StatusCode};
use serde_json::{Value, json};

use super::rpc::{self, Request, Verdict};
use super::schema::Type;
use super::{Answer, Pool, xmlrpc};
use crate::xapi::wire::Failure;

/// Request line and headers together (xapi.md 1.1).
const HEADERS: usize = 1024;
/// An RPC body (xapi.md 1.1).
const BODY: usize = 300 * 1024;
/// Time for the first half of a broken reply to leave.
const HALF_SENT: Duration = Duration::from_millis(20);
const TAG: &str = "x-http-other-config-";

/// The connection shall die: a fault of the wire, or of the daemon.
#[derive(Debug, thiserror::Error)]
#[error("the simulated connection was cut")]
pub struct Cut;

type Reply = Response<BoxBody<Bytes, Cut>>;

#[derive(Clone, Copy, PartialEq)]
enum Dialect {
    V1,
    V2,
    Xml,
}

/// Answers one request to the host with this address.
///
/// # Errors
/// [`Cut`] where the connection is to die without an answer.
pub async fn answer(pool: Arc<Pool>, address: String, request: hyper::Request<Incoming>) -> Result<Reply, Cut> {
    let (head, body) = request.into_parts();
    let line = head.method.as_str().len() + head.uri.to_string().len() + "  HTTP/1.1\r\n\r\n".len();
    let headers = head.headers.iter().map(|(k, v)| k.as_str().len() + v.len() + ": \r\n".len());
    if line + headers.sum::<usize>() > HEADERS {
        return Ok(page(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "Request Header Fields Too Large"));
    }
    // The longest matching prefix wins; `/` catches the rest (xapi.md 1.1).
    let dialect = match (&head.method, head.uri.path()) {
        (&Method::POST, "/jsonrpc") => Dialect::V2,
        (&Method::POST, _) => Dialect::Xml,
        (&Method::GET, _) => return Ok(page(StatusCode::OK, "Welcome to XenServer")),
        _ => return Ok(page(StatusCode::NOT_FOUND, "Not Found")),
    };
    let malformed = || Ok(page(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error"));
    let sized = head.headers.contains_key(CONTENT_LENGTH) && !head.headers.contains_key(TRANSFER_ENCODING);
    if !sized || body.size_hint().lower() > BODY as u64 {
        return malformed();
    }
    let Ok(body) = Limited::new(body, BODY).collect().await else { return malformed() };
    let body = body.to_bytes();
    let Ok(text) = std::str::from_utf8(&body) else {
        return Ok(early(dialect, &Failure::new("INVALID_VALUE", ["request", "invalid UTF-8"])));
    };
    let Some((dialect, id, method, params)) = parse(dialect, text) else { return malformed() };
    let request = Request { method, params, tags: tags(&head.headers), address };
    match rpc::handle(&pool, request).await {
        Verdict::Reply(answer, kind) => Ok(whole(dialect, render(dialect, &id, &answer, &kind))),
        Verdict::Early(failure) => Ok(early(dialect, &failure)),
        Verdict::Truncate(answer, kind) => Ok(half(dialect, render(dialect, &id, &answer, &kind))),
        Verdict::Cut => Err(Cut),
    }
}

/// Names come lower-cased; of equal headers the first wins (xapi.md 14, Tags on tasks).
fn tags(headers: &HeaderMap) -> Vec<(String, String)> {
    let mut tags: Vec<(String, String)> = Vec::new();
    for (name, value) in headers {
        let Some(key) = name.as_str().strip_prefix(TAG) else { continue };
        if !tags.iter().any(|(k, _)| k == key) {
            tags.push((key.to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
        }
    }
    tags
}

fn parse(dialect: Dialect, text: &str) -> Option<(Dialect, Value, String, Vec<Value>)> {
    if dialect == Dialect::Xml {
        let (method, params) = xmlrpc::parse(text)?;
        return Some((Dialect::Xml, Value::Null, method, params));
    }
    let Value::Object(mut call) = serde_json::from_str(text).ok()? else { return None };
    let dialect = match call.get("jsonrpc") {
        None => Dialect::V1,
        Some(version) if version == "2.0" => Dialect::V2,
        Some(_) => return None,
    };
    // No notifications: an id is compulsory (xapi.md 1.2).
    let id = call.remove("id").filter(|id| id.is_string() || id.is_i64())?;
    let method = call.get("method")?.as_str()?.to_owned();
    let params = match (call.remove("params"), dialect) {
        (Some(Value::Array(params)), _) => params,
        (None | Some(Value::Null), Dialect::V2) => Vec::new(),
        (Some(object @ Value::Object(_)), Dialect::V2) => vec![object],
        _ => return None,
    };
    Some((dialect, id, method, params))
}

fn list(failure: &Failure) -> Value {
    std::iter::once(&failure.code).chain(&failure.params).map(|s| json!(s)).collect()
}

fn render(dialect: Dialect, id: &Value, answer: &Answer, kind: &Type) -> String {
    let reply = match (dialect, answer) {
        (Dialect::Xml, _) => return xmlrpc::response(answer, kind),
        // A whole table is no small text: written straight away, not built as another value first.
        (Dialect::V1, Ok(value)) => {
            return bare_floats(format!(r#"{{"result":{value},"error":null,"id":{id}}}"#));
        }
        (Dialect::V1, Err(failure)) => json!({"result": null, "error": list(failure), "id": id}),
        (Dialect::V2, Ok(value)) => return bare_floats(format!(r#"{{"jsonrpc":"2.0","result":{value},"id":{id}}}"#)),
        (Dialect::V2, Err(Failure { code, params })) => {
            json!({"jsonrpc": "2.0", "error": {"code": 1, "message": code, "data": params}, "id": id})
        }
    };
    bare_floats(reply.to_string())
}

/// The daemon writes `NaN` and infinities as bare tokens (xapi.md 1.3); rows keep them as these strings.
fn bare_floats(text: String) -> String {
    ["NaN", "Infinity", "-Infinity"].iter().fold(text, |text, token| {
        let kept = format!("\"{}{token}\"", super::schema::ODD_FLOAT);
        if text.contains(&kept) { text.replace(&kept, token) } else { text }
    })
}

/// A failure from before dispatch: a 2.0 reply with a bare array and the id 0 (xapi.md 1.2, quirk).
fn early(dialect: Dialect, failure: &Failure) -> Reply {
    match dialect {
        Dialect::Xml => whole(dialect, xmlrpc::response(&Err(failure.clone()), &Type::Void)),
        Dialect::V1 | Dialect::V2 => {
            whole(dialect, json!({"jsonrpc": "2.0", "error": list(failure), "id": 0}).to_string())
        }
    }
}

fn content_type(dialect: Dialect) -> &'static str {
    if dialect == Dialect::Xml { "text/xml" } else { "application/json" }
}

fn full(text: String) -> BoxBody<Bytes, Cut> {
    Full::new(Bytes::from(text)).map_err(|never: Infallible| match never {}).boxed()
}

fn respond(status: StatusCode, content: &'static str, length: usize, body: BoxBody<Bytes, Cut>) -> Reply {
    let mut reply = Response::new(body);
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content));
    reply.headers_mut().insert(CONTENT_LENGTH, length.into());
    reply
}

fn whole(dialect: Dialect, text: String) -> Reply {
    respond(StatusCode::OK, content_type(dialect), text.len(), full(text))
}

fn half(dialect: Dialect, text: String) -> Reply {
    let length = text.len();
    let first = Bytes::from(text).slice(..length / 2);
    let frames = futures::stream::iter([Ok(Frame::data(first))]).chain(futures::stream::once(async {
        tokio::time::sleep(HALF_SENT).await;
        Err(Cut)
    }));
    respond(StatusCode::OK, content_type(dialect), length, BodyExt::boxed(StreamBody::new(frames)))
}

fn page(status: StatusCode, title: &str) -> Reply {
    let text = format!("<html><body><h1>HTTP {} {title}</h1></body></html>", status.as_u16());
    let mut reply = respond(status, "text/html", text.len(), full(text));
    if status != StatusCode::OK {
        reply.headers_mut().insert(CONNECTION, hyper::header::HeaderValue::from_static("close"));
    }
    reply
}
