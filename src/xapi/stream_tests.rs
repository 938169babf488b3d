//! The parts of a stream that need no pool: heads, redirects, what shows on an export by itself.

use super::*;
use crate::xapi::client::endpoint;

#[test]
fn only_this_request_is_redirected() {
    let asked = endpoint("https://xen1:8443").unwrap();
    let to = |to: &str| elsewhere(&asked, to, Way::Out(0)).map(|url| url.to_string());
    assert_eq!(to("https://10.0.0.2/export_raw_vdi?session_id=x").unwrap(), "https://10.0.0.2/jsonrpc");
    assert_eq!(to("https://[fd00::2]:8443/export_raw_vdi").unwrap(), "https://[fd00::2]:8443/jsonrpc");
    for bad in [
        "http://xen2/export_raw_vdi",
        "https://xen2/import_raw_vdi",
        "https://user@xen2/export_raw_vdi",
        "/export_raw_vdi",
        "https://xen1:8443/export_raw_vdi?again=1",
        "",
    ] {
        assert_eq!(to(bad), None, "{bad}");
    }
}

#[test]
fn an_answer_is_its_status_and_two_headers() {
    let parse = |text: &str| Answer::parse(text.as_bytes());
    let found = parse("HTTP/1.1 302 Found\r\nLOCATION:  https://b/x \r\n\r\n").unwrap();
    assert_eq!((found.status, found.location.as_deref(), found.encoded), (302, Some("https://b/x"), false));
    assert!(parse("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").unwrap().encoded);
    for bad in ["", "HTTP/2 200\r\n\r\n", "HTTP/1.1\r\n\r\n", "HTTP/1.1 two\r\n\r\n"] {
        assert_eq!(parse(bad), None, "{bad}");
    }
}

#[test]
fn an_export_is_as_long_as_its_disk_and_no_second_answer() {
    assert_eq!(fault_in(b"1234", 4), None);
    assert_eq!(fault_in(b"123", 4), Some(StreamProblem::Length { wanted: 4 }));
    assert_eq!(fault_in(b"12345", 4), Some(StreamProblem::Length { wanted: 4 }));
    let second = b"HTTP/1.1 500 Internal Server Error\r\n\r\n";
    assert_eq!(fault_in(second, second.len()), Some(StreamProblem::SecondAnswer));
}

/// Who may not tag the task of a stream finds it all the same; whatever else is described is no operation.
#[test]
fn the_operation_of_a_task_is_its_tag_or_what_a_stream_describes() {
    let task = |tag: Option<&str>, name: &str| Task {
        name_label: name.to_owned(),
        name_description: "op.fill".to_owned(),
        other_config: tag.map(|tag| (TASK_TAG.to_owned(), tag.to_owned())).into_iter().collect(),
        ..Task::default()
    };
    let op = |task: Task| task.op().cloned();
    assert_eq!(op(task(Some("tagged"), "Async.VDI.clone")).as_deref(), Some("tagged"));
    assert_eq!(op(task(None, LABEL)).as_deref(), Some("op.fill"));
    assert_eq!(op(task(None, "Async.VDI.clone")), None);
}
