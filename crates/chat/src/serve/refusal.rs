//! What a client is told when there is no answer: OpenAI's error object.

use axum::body::Body;
use axum::http::{Response, StatusCode, header};
use axum::response::IntoResponse;
use serde_json::{Value, json};

/// Why a request gets no answer.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    message: String,
    param: Option<String>,
    code: Option<&'static str>,
    retry: bool,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None, retry: false }
    }

    /// 400: the request is wrong as a whole.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 400: one parameter is wrong.
    pub(crate) fn param(name: &str, message: impl Into<String>) -> Self {
        Self { param: Some(name.to_owned()), ..Self::bad(message) }
    }

    /// 400: prompt and answer do not fit the model.
    pub(crate) fn too_long(name: &str, message: impl Into<String>) -> Self {
        Self { code: Some("context_length_exceeded"), ..Self::param(name, message) }
    }

    /// 404 for a model that is not served.
    pub(crate) fn no_model(id: &str, served: &[&str]) -> Self {
        let served = served.join(", ");
        let message = format!("the model `{id}` is not served here; there is {served}");
        Self {
            param: Some("model".into()),
            code: Some("model_not_found"),
            ..Self::new(StatusCode::NOT_FOUND, message)
        }
    }

    /// 404 for an address.
    pub(crate) fn no_path(path: &str) -> Self {
        let there = "/v1/models, /v1/chat/completions, /v1/completions, /health and /";
        Self::new(StatusCode::NOT_FOUND, format!("there is nothing at {path}; there is {there}"))
    }

    /// 405.
    pub(crate) fn no_method(method: &str, path: &str) -> Self {
        let message = format!("{path} does not take {method}");
        Self::new(StatusCode::METHOD_NOT_ALLOWED, message)
    }

    /// 408: the body did not come.
    pub(crate) fn slow_body(seconds: u64) -> Self {
        let message = format!("the body did not come within {seconds} seconds");
        Self::new(StatusCode::REQUEST_TIMEOUT, message)
    }

    /// 413.
    pub(crate) fn too_large(limit: usize) -> Self {
        let message = format!("the body is larger than {limit} bytes, the most this server takes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// 415.
    pub(crate) fn not_json() -> Self {
        let message = "send the body as JSON, with the header content-type: application/json";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message)
    }

    /// 429: the queue is full.
    pub(crate) fn busy(waiting: usize) -> Self {
        let message = format!("{waiting} requests are waiting already; try again later");
        Self { retry: true, ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }
    }

    /// 500.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 503: it shuts down.
    pub(crate) fn stopping() -> Self {
        let message = "the server is shutting down";
        Self { retry: true, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message) }
    }

    /// 504: the answer took too long.
    pub(crate) fn timeout() -> Self {
        let message = "the answer was not finished within the server's time limit";
        Self::new(StatusCode::GATEWAY_TIMEOUT, message)
    }

    /// OpenAI's error object.
    pub(crate) fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "server_error",
        };
        json!({ "error": {
            "message": self.message, "type": kind, "param": self.param, "code": self.code,
        }})
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response<Body> {
        let mut response = json_response(self.status, &self.body());
        if self.retry {
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        response
    }
}

/// A response with a JSON body.
pub(crate) fn json_response(status: StatusCode, body: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    let kind = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
