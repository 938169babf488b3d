//! What travels between an XAPI client and a pool: references, failures, JSON-RPC envelopes, times.
//!
//! Used by the client and by the simulator; it holds shapes only, never behaviour of either side.
//! Source: the XAPI wire protocol (JSON-RPC 1.0 and 2.0 on `POST /jsonrpc`).

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

/// A reference to an object of a pool, `OpaqueRef:…`. Opaque, and not to be kept: store uuids.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ref(pub String);

impl Ref {
    pub const NULL: &'static str = "OpaqueRef:NULL";

    pub fn null() -> Self {
        Self(Self::NULL.to_owned())
    }

    /// XAPI writes "no object" as `OpaqueRef:NULL`, and in a few fields as the empty string.
    pub fn is_null(&self) -> bool {
        self.0.is_empty() || self.0 == Self::NULL
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Ref {
    fn default() -> Self {
        Self::null()
    }
}

impl std::fmt::Display for Ref {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// An XAPI failure: a code and its parameters, e.g. `HANDLE_INVALID ["VDI", "OpaqueRef:…"]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: String,
    pub params: Vec<String>,
}

impl Failure {
    pub fn new<P: Into<String>>(code: &str, params: impl IntoIterator<Item = P>) -> Self {
        Self { code: code.to_owned(), params: params.into_iter().map(Into::into).collect() }
    }

    /// From the list form `[code, params…]` of `task.error_info`, JSON-RPC 1.0 and early failures.
    pub fn from_list(list: &[String]) -> Option<Self> {
        let (code, params) = list.split_first()?;
        Some(Self { code: code.clone(), params: params.to_vec() })
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?}", self.code, self.params)
    }
}

impl std::error::Error for Failure {}

/// A JSON-RPC request as a client sends it (2.0).
#[derive(Serialize)]
pub struct Request<'a> {
    pub jsonrpc: &'static str,
    pub id: u64,
    pub method: &'a str,
    pub params: &'a [Value],
}

/// A JSON-RPC reply of either version. `error` is an object (2.0) or a bare array (1.0, and failures
/// raised before dispatch, whose `id` is 0): read it with [`Reply::outcome`].
#[derive(Deserialize)]
pub struct Reply<T = Value> {
    #[serde(default = "Option::default")]
    pub result: Option<T>,
    #[serde(default)]
    pub error: Option<Value>,
}

impl<T> Reply<T> {
    /// The result, the failure, or `None` where the reply is neither.
    pub fn outcome(self) -> Option<Result<T, Failure>> {
        let strings =
            |v: &Value| -> Vec<String> { v.as_array().map(|a| a.iter().map(text).collect()).unwrap_or_default() };
        match self.error {
            None | Some(Value::Null) => self.result.map(Ok),
            Some(list @ Value::Array(_)) => Failure::from_list(&strings(&list)).map(Err),
            Some(Value::Object(o)) => {
                let code = o.get("message").map(text)?;
                Some(Err(Failure { code, params: o.get("data").map(strings).unwrap_or_default() }))
            }
            Some(Value::Bool(_) | Value::Number(_) | Value::String(_)) => None,
        }
    }
}

fn text(v: &Value) -> String {
    v.as_str().map_or_else(|| v.to_string(), str::to_owned)
}

/// Makes JSON of what XAPI writes: its floats may be `NaN`, `Infinity` and `-Infinity`, which JSON does not know and which
/// become 0. Strings are left alone.
pub fn standard_json(text: &[u8]) -> Cow<'_, [u8]> {
    const ODD: [&[u8]; 2] = [b"NaN", b"Infinity"];
    let mut out: Option<Vec<u8>> = None;
    let (mut in_string, mut copied, mut at) = (false, 0, 0);
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let odd = ODD.iter().find(|odd| !in_string && rest.starts_with(odd));
        at += match (odd, rest) {
            (Some(odd), _) => {
                let out = out.get_or_insert_default();
                out.extend_from_slice(text.get(copied..at).unwrap_or_default());
                out.push(b'0');
                copied = at + odd.len();
                odd.len()
            }
            (None, [b'\\', ..]) => 2,
            (None, [byte, ..]) => {
                in_string ^= *byte == b'"';
                1
            }
            (None, []) => 1,
        };
    }
    match out {
        Some(mut out) => {
            out.extend_from_slice(text.get(copied..).unwrap_or_default());
            Cow::Owned(out)
        }
        None => Cow::Borrowed(text),
    }
}

/// One event of `event.from`. A `del` has no snapshot. The snapshot stays text until somebody knows its class, so that one
/// odd record spoils nothing but itself.
#[derive(Debug, Deserialize)]
pub struct Event {
    pub class: String,
    pub operation: String,
    #[serde(rename = "ref")]
    pub reference: Ref,
    #[serde(default)]
    pub snapshot: Option<Box<RawValue>>,
}

/// The answer of `event.from`.
#[derive(Debug, Deserialize)]
pub struct EventBatch {
    pub events: Vec<Event>,
    #[serde(default)]
    pub valid_ref_counts: std::collections::HashMap<String, i64>,
    pub token: String,
}

/// The time that XAPI writes for "never".
pub const NEVER: &str = "19700101T00:00:00Z";

/// Parses `20260921T14:03:59Z`, and RFC 3339 as newer hosts may write it.
pub fn parse_time(s: &str) -> Option<jiff::Timestamp> {
    if let Ok(t) = s.parse() {
        return Some(t);
    }
    let (date, time) = s.split_once('T')?;
    if date.len() != 8 || !date.is_ascii() {
        return None;
    }
    format!("{}-{}-{}T{time}", &date[..4], &date[4..6], &date[6..]).parse().ok()
}

/// Writes a time as XAPI does: no dashes, colons kept, UTC, whole seconds.
pub fn format_time(t: jiff::Timestamp) -> String {
    t.strftime("%Y%m%dT%H:%M:%SZ").to_string()
}

/// `task.result` is an XML fragment: `<value>OpaqueRef:…</value>`; a bare string is accepted too.
pub fn task_result(s: &str) -> String {
    let inner = s.strip_prefix("<value>").and_then(|s| s.strip_suffix("</value>")).unwrap_or(s);
    inner.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_error_shapes_are_read() {
        for error in [
            json!({"code": 1, "message": "VDI_IN_USE", "data": ["r", "destroy"]}),
            json!(["VDI_IN_USE", "r", "destroy"]),
        ] {
            let reply: Reply = serde_json::from_value(json!({"id": 0, "error": error})).unwrap();
            assert_eq!(reply.outcome().unwrap().unwrap_err(), Failure::new("VDI_IN_USE", ["r", "destroy"]));
        }
    }

    #[test]
    fn numbers_that_json_does_not_know_become_zero_outside_strings() {
        let patched = |text: &str| String::from_utf8(standard_json(text.as_bytes()).into_owned()).unwrap();
        assert_eq!(patched(r#"{"a":NaN,"b":[-Infinity,Infinity]}"#), r#"{"a":0,"b":[-0,0]}"#);
        assert_eq!(
            patched(r#"{"NaN":"say \"NaN\", Infinity\\","b":NaN}"#),
            r#"{"NaN":"say \"NaN\", Infinity\\","b":0}"#
        );
        assert!(matches!(standard_json(br#"{"a":"NaN"}"#), Cow::Borrowed(_)));
    }

    #[test]
    fn times_round_trip_in_both_forms() {
        let t = parse_time("20260921T14:03:59Z").unwrap();
        assert_eq!(t, parse_time("2026-09-21T14:03:59Z").unwrap());
        assert_eq!(format_time(t), "20260921T14:03:59Z");
        assert_eq!(parse_time("é0260921T1"), None);
    }

    #[test]
    fn task_results_lose_their_tags() {
        assert_eq!(task_result("<value>OpaqueRef:a</value>"), "OpaqueRef:a");
        assert_eq!(task_result("OpaqueRef:a"), "OpaqueRef:a");
    }
}
