//! The bodies of a request and of its response, which count their bytes.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::exchange::{Exchange, Received};
use crate::logs::context::LogContext;

pin_project! {
    /// The body of a request. Made by [`HttpService`](super::HttpService).
    pub struct RequestBody<B> {
        #[pin]
        inner: B,
        // `None` for a request that is excluded.
        received: Option<Arc<Received>>,
    }
}

impl<B> RequestBody<B> {
    pub(super) fn new(inner: B, received: Option<Arc<Received>>) -> Self {
        Self { inner, received }
    }
}

impl<B: Body<Data = Bytes>> Body for RequestBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.project();
        let polled = this.inner.poll_frame(cx);
        if let (Poll::Ready(Some(Ok(frame))), Some(received)) = (&polled, this.received)
            && let Some(data) = frame.data_ref()
        {
            received.add(data.len());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B: Default> Default for RequestBody<B> {
    fn default() -> Self {
        Self::new(B::default(), None)
    }
}

impl<B> fmt::Debug for RequestBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestBody").finish_non_exhaustive()
    }
}

pin_project! {
    /// The body of a response. Made by [`HttpService`](super::HttpService). The span of the request
    /// ends with it.
    pub struct ResponseBody<B> {
        #[pin]
        inner: Inner<B>,
        state: Option<State>,
    }
}

pin_project! {
    #[project = InnerProjected]
    enum Inner<B> {
        Handler { #[pin] body: B },
        Text { text: Option<Bytes> },
    }
}

struct State {
    exchange: Exchange,
    log: LogContext,
    /// The length of the whole body, if the body knows it.
    length: Option<u64>,
}

impl<B> ResponseBody<B> {
    /// A body of this crate.
    pub(super) fn text(text: String, exchange: Exchange, log: LogContext) -> Self {
        let state = State {
            exchange,
            log,
            length: Some(text.len() as u64),
        };
        Self {
            inner: Inner::Text {
                text: Some(text.into()),
            },
            state: Some(state),
        }
    }

    /// The body of a request that is excluded or has ended.
    pub(super) fn unobserved(body: B) -> Self {
        Self {
            inner: Inner::Handler { body },
            state: None,
        }
    }
}

impl<B: Body<Data = Bytes>> ResponseBody<B> {
    pub(super) fn new(body: B, exchange: Exchange, log: LogContext) -> Self {
        let state = State {
            exchange,
            log,
            length: body.size_hint().exact(),
        };
        Self {
            inner: Inner::Handler { body },
            state: Some(state),
        }
    }
}

impl<B: Body<Data = Bytes>> Body for ResponseBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let mut this = self.project();
        // Streams of the handler may log and open spans.
        let contexts = this
            .state
            .as_ref()
            .map(|state| (state.log.enter(), state.exchange.span().enter()));
        let polled = match this.inner.as_mut().project() {
            InnerProjected::Handler { body } => body.poll_frame(cx),
            InnerProjected::Text { text } => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
        };
        drop(contexts);
        match &polled {
            Poll::Pending => {}
            Poll::Ready(None) => end(this.state, Exchange::finish),
            Poll::Ready(Some(Err(_))) => end(this.state, |exchange| exchange.fail("response_body")),
            Poll::Ready(Some(Ok(frame))) => {
                if let (Some(state), Some(data)) = (this.state.as_mut(), frame.data_ref()) {
                    state.exchange.sent(data.len());
                    // A server may not ask again after the last byte.
                    if state
                        .length
                        .is_some_and(|length| state.exchange.sent_bytes() >= length)
                    {
                        end(this.state, Exchange::finish);
                    }
                }
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Handler { body } => body.is_end_stream(),
            Inner::Text { text } => text.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Handler { body } => body.size_hint(),
            Inner::Text { text } => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
        }
    }
}

fn end(state: &mut Option<State>, how: impl FnOnce(Exchange)) {
    if let Some(state) = state.take() {
        how(state.exchange);
    }
}

impl<B> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}
