//! The head of a stream's request: its line, its parameters in query and cookies, its headers (xapi.md 6.1).

use super::super::base64;

/// Which stream is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Import,
    Export,
}

impl Kind {
    /// As the log of calls and faults name it.
    pub fn method(self) -> &'static str {
        match self {
            Self::Import => "PUT /import_raw_vdi",
            Self::Export => "GET /export_raw_vdi",
        }
    }

    /// As a role's permission is named (xapi.md 9.3).
    pub fn permission(self) -> &'static str {
        match self {
            Self::Import => "http/put_import_raw_vdi",
            Self::Export => "http/get_export_raw_vdi",
        }
    }

    /// The name of a task that the daemon makes itself.
    pub fn label(self) -> &'static str {
        match self {
            Self::Import => "Importing raw VDI",
            Self::Export => "Exporting raw VDI",
        }
    }
}

#[derive(Debug)]
pub struct Head {
    pub kind: Kind,
    /// Path and query as sent, for a redirect.
    pub target: String,
    /// Cookies, then the query.
    params: Vec<(String, String)>,
    /// User and password of HTTP Basic.
    pub basic: Option<(String, String)>,
    /// `Content-Length`.
    pub length: Option<u64>,
    /// `Transfer-Encoding` is there, whatever it says.
    pub encoded: bool,
    /// `X-Http-Other-Config-<name>` headers, as `rpc` takes them.
    pub tags: Vec<(String, String)>,
}

impl Head {
    /// Reads everything up to the empty line; `None` for what is no HTTP.
    pub fn parse(text: &str) -> Option<Self> {
        let mut lines = text.split("\r\n");
        let mut words = lines.next()?.split(' ');
        let kind = if words.next()? == "PUT" { Kind::Import } else { Kind::Export };
        let target = words.next()?.to_owned();
        words.next().filter(|version| version.starts_with("HTTP/1."))?;
        let query = target.split_once('?').map_or("", |(_, query)| query);
        let mut head = Self {
            kind,
            params: pairs(query, '&'),
            target: target.clone(),
            basic: None,
            length: None,
            encoded: false,
            tags: Vec::new(),
        };
        for line in lines.filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':')?;
            head.header(&name.to_lowercase(), value.trim())?;
        }
        Some(head)
    }

    fn header(&mut self, name: &str, value: &str) -> Option<()> {
        match name {
            "content-length" => self.length = Some(value.parse().ok()?),
            "transfer-encoding" => self.encoded = true,
            "cookie" => {
                let mut cookies = pairs(value, ';');
                cookies.append(&mut self.params);
                self.params = cookies;
            }
            "authorization" => {
                let coded = value.strip_prefix("Basic ")?;
                let text = String::from_utf8(base64::decode(coded.trim())?).ok()?;
                self.basic = text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()));
            }
            _ => {
                if let Some(key) = name.strip_prefix("x-http-other-config-")
                    && !self.tags.iter().any(|(known, _)| known == key)
                {
                    self.tags.push((key.to_owned(), value.to_owned()));
                }
            }
        }
        Some(())
    }

    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// What the log of calls may show: never a session.
    pub fn shown(&self) -> serde_json::Map<String, serde_json::Value> {
        let open = self.params.iter().filter(|(key, _)| key != "session_id");
        open.map(|(key, value)| (key.clone(), value.as_str().into())).collect()
    }
}

fn pairs(text: &str, between: char) -> Vec<(String, String)> {
    let pairs = text.split(between).filter_map(|pair| pair.trim().split_once('='));
    pairs.map(|(key, value)| (plain(key), plain(value))).collect()
}

/// Undoes `%xx` and `+`; a broken escape stays as it is.
fn plain(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        let (byte, next) = match (first, code.and_then(|code| u8::from_str_radix(code, 16).ok())) {
            (b'%', Some(byte)) => (byte, after.get(2..).unwrap_or_default()),
            (b'+', _) => (b' ', after),
            _ => (*first, after),
        };
        out.push(byte);
        rest = next;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_come_in_query_and_cookies_and_may_be_escaped() {
        let text = "PUT /import_raw_vdi?vdi=OpaqueRef%3Aa&format=raw&session_id=q HTTP/1.1\r\nCookie: session_id=c; x=1\r\n\
            content-LENGTH: 12\r\nAuthorization: Basic cm9vdDpzZWNyZXQ=\r\nX-Http-Other-Config-Op: 7\r\n\r\n";
        let head = Head::parse(text).unwrap();
        assert_eq!((head.kind, head.length, head.encoded), (Kind::Import, Some(12), false));
        assert_eq!(
            (head.param("vdi"), head.param("session_id"), head.param("x")),
            (Some("OpaqueRef:a"), Some("c"), Some("1"))
        );
        assert_eq!(head.basic, Some(("root".to_owned(), "secret".to_owned())));
        assert_eq!(head.tags, [("op".to_owned(), "7".to_owned())]);
        assert!(!head.shown().contains_key("session_id"));
        for broken in [
            "",
            "GET /x",
            "GET /x FTP/1",
            "GET /x HTTP/1.1\r\nno header\r\n",
            "GET /x HTTP/1.1\r\nContent-Length: x\r\n",
        ] {
            assert!(Head::parse(broken).is_none(), "{broken}");
        }
        assert_eq!(plain("100%+%4"), "100% %4");
    }
}
