//! Finds a request for a stream among those of an ordinary connection, before the HTTP server sees it.
//!
//! `serve` lays it between TLS and hyper. A stream's answer comes before its body is read, has neither length nor chunks, and may hold a
//! second answer (xapi.md 6.2): no HTTP library writes that. Such a request ends the connection for hyper, and what was read goes to `stream`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How the first line of a stream's request begins; as long as one another.
const BEGINNINGS: [&[u8]; 2] = [b"PUT /import_raw_vdi", b"GET /export_raw_vdi"];

enum State {
    /// At the beginning of a request; what is read of it so far.
    Looking(Vec<u8>),
    /// Another request, up to its answer.
    Passing,
    /// A stream's.
    Taken(Vec<u8>),
}

pub struct Tap<S> {
    inner: S,
    state: State,
}

impl<S> Tap<S> {
    pub fn new(inner: S) -> Self {
        Self { inner, state: State::Looking(Vec::new()) }
    }

    /// The connection, and the beginning of a stream's request if there is one.
    pub fn into_parts(self) -> (S, Option<Vec<u8>>) {
        let taken = if let State::Taken(begun) = self.state { Some(begun) } else { None };
        (self.inner, taken)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Tap<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let me = self.get_mut();
        loop {
            match &mut me.state {
                State::Passing => return Pin::new(&mut me.inner).poll_read(cx, buf),
                State::Taken(_) => return Poll::Ready(Ok(())),
                State::Looking(held) => {
                    let undecided = |b: &&&[u8]| b.starts_with(held.as_slice()) && b.len() > held.len();
                    if BEGINNINGS.contains(&held.as_slice()) {
                        me.state = State::Taken(std::mem::take(held));
                        continue;
                    }
                    let Some(wanted) = BEGINNINGS.iter().find(undecided).map(|b| b.len() - held.len()) else {
                        // Never longer than a beginning, and hyper's buffer holds far more.
                        buf.put_slice(held);
                        me.state = State::Passing;
                        return Poll::Ready(Ok(()));
                    };
                    let mut few = [0; 32];
                    let mut part = ReadBuf::new(few.get_mut(..wanted).unwrap_or_default());
                    ready!(Pin::new(&mut me.inner).poll_read(cx, &mut part))?;
                    if part.filled().is_empty() {
                        buf.put_slice(held);
                        me.state = State::Passing;
                        return Poll::Ready(Ok(()));
                    }
                    held.extend_from_slice(part.filled());
                }
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Tap<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let me = self.get_mut();
        // An answer: whatever is read next is a new request.
        if matches!(me.state, State::Passing) {
            me.state = State::Looking(Vec::new());
        }
        Pin::new(&mut me.inner).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
