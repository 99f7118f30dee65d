//! The HTTP side: addresses, connections, and how they end.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, HttpBody as _};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, Uri, header};
use axum::response::{Html, IntoResponse};
use axum::routing::{get, post};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;

use super::asked::{Asked, Shape};
use super::models::Served;
use super::queue::NotTaken;
use super::refusal::{Refusal, json_response};
use super::reply::{Events, Frames};

/// Connections at a time; more wait to be accepted.
const CONNECTIONS: usize = 1024;

/// What a request and its client may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of a body.
    pub(crate) body: usize,
    /// Answers that wait for a model.
    pub(crate) waiting: usize,
    /// From a request's head to the end of its answer.
    pub(crate) request: Duration,
    /// For a request's head or body to come, and for what is sent to be taken.
    pub(crate) client: Duration,
}

/// What all handlers share.
pub(crate) struct Server {
    pub(crate) models: Vec<Arc<Served>>,
    pub(crate) limits: Limits,
    pub(crate) stopping: AtomicBool,
    pub(crate) answers: AtomicU64,
    pub(crate) started: u64,
}

impl Server {
    pub(crate) fn new(models: Vec<Arc<Served>>, limits: Limits) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (stopping, answers) = (AtomicBool::new(false), AtomicU64::new(0));
        Self { models, limits, stopping, answers, started: now.as_secs() }
    }

    fn find(&self, id: &str) -> Result<Arc<Served>, Refusal> {
        let served = self.models.iter().find(|served| served.id == id);
        served.cloned().ok_or_else(|| {
            let ids: Vec<&str> = self.models.iter().map(|served| &*served.id).collect();
            Refusal::no_model(id, &ids)
        })
    }
}

type Shared = State<Arc<Server>>;

pub(crate) fn router(server: Arc<Server>) -> Router {
    let chat = |State(server): Shared, request: Request| answer(server, Shape::Chat, request);
    let complete =
        |State(server): Shared, request: Request| answer(server, Shape::Completion, request);
    Router::new()
        .route("/", get(async || page()))
        .route("/health", get(health))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(complete))
        .fallback(async |uri: Uri| Refusal::no_path(uri.path()))
        .method_not_allowed_fallback(async |request: Request| {
            Refusal::no_method(request.method().as_str(), request.uri().path())
        })
        .with_state(server)
}

/// The page: it loads nothing, and talks to this server alone.
fn page() -> impl IntoResponse {
    const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                          connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
                          frame-ancestors 'none'";
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(include_str!("page.html")))
}

async fn health(State(server): Shared) -> Response<Body> {
    if server.stopping.load(Ordering::SeqCst) {
        return Refusal::stopping().into_response();
    }
    json_response(StatusCode::OK, &json!({ "status": "ok" }))
}

fn model_object(server: &Server, served: &Served) -> serde_json::Value {
    json!({
        "id": served.id, "object": "model", "created": server.started, "owned_by": "temper",
        "context_length": served.limits.context, "chat": served.template.is_some(),
    })
}

async fn models(State(server): Shared) -> Response<Body> {
    let data: Vec<_> = server.models.iter().map(|served| model_object(&server, served)).collect();
    json_response(StatusCode::OK, &json!({ "object": "list", "data": data }))
}

async fn model(
    State(server): Shared,
    axum::extract::Path(id): axum::extract::Path<String>,
) -> Result<Response<Body>, Refusal> {
    let served = server.find(&id)?;
    Ok(json_response(StatusCode::OK, &model_object(&server, &served)))
}

async fn answer(
    server: Arc<Server>,
    shape: Shape,
    request: Request,
) -> Result<Response<Body>, Refusal> {
    let deadline = Instant::now() + server.limits.request;
    if server.stopping.load(Ordering::SeqCst) {
        return Err(Refusal::stopping());
    }
    if !is_json(request.headers()) {
        return Err(Refusal::not_json());
    }
    let body = read(request.into_body(), server.limits).await?;
    let asked = Asked::read(shape, &body, |id| server.find(id))?;
    let (work, pieces) = asked.work(deadline);
    if work.len() > server.limits.waiting {
        let (asked, most) = (work.len(), server.limits.waiting);
        return Err(Refusal::bad(format!("{asked} answers are asked for; {most} are the most")));
    }
    asked.served.queue.offer(work).map_err(|error| match error {
        NotTaken::Full(waiting) => Refusal::busy(waiting),
        NotTaken::Closed => Refusal::stopping(),
    })?;
    let number = server.answers.fetch_add(1, Ordering::Relaxed);
    let frames = Frames::new(asked, number);
    if !frames.asked.stream {
        return Ok(json_response(StatusCode::OK, &frames.whole(pieces).await?));
    }
    let mut response = Response::new(Body::new(Events::new(frames, pieces)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    Ok(response)
}

/// A page of another origin can send a text or a form without asking the server, but not JSON.
fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default();
    kind.trim().eq_ignore_ascii_case("application/json")
}

/// A request's body, if it is not too large and comes in time.
async fn read(mut body: Body, limits: Limits) -> Result<Vec<u8>, Refusal> {
    let too_large = || Refusal::too_large(limits.body);
    if body.size_hint().lower() > limits.body as u64 {
        return Err(too_large());
    }
    let all = async {
        let mut all = Vec::new();
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await
        {
            let frame =
                frame.map_err(|error| Refusal::bad(format!("the body broke off: {error}")))?;
            all.extend_from_slice(&frame.into_data().unwrap_or_default());
            if all.len() > limits.body {
                return Err(too_large());
            }
        }
        Ok(all)
    };
    let in_time = tokio::time::timeout(limits.client, all).await;
    in_time.unwrap_or_else(|_| Err(Refusal::slow_body(limits.client.as_secs())))
}

/// Accepts connections and answers them until `stopped` is ready; then takes no new ones, and waits at most `limit` for what
/// runs, before `break_off` is called.
pub(crate) async fn serve(
    listener: TcpListener,
    server: Arc<Server>,
    stopped: impl Future<Output = ()>,
    limit: Duration,
    break_off: impl FnOnce(),
) {
    let connections = Arc::new(GracefulShutdown::new());
    let accepting = {
        let (server, connections) = (Arc::clone(&server), Arc::clone(&connections));
        tokio::spawn(accept(listener, server, connections))
    };
    stopped.await;
    server.stopping.store(true, Ordering::SeqCst);
    accepting.abort();
    let _ = accepting.await;
    let Some(connections) = Arc::into_inner(connections) else { return };
    let mut ended = Box::pin(connections.shutdown());
    if tokio::time::timeout(limit, &mut ended).await.is_err() {
        tracing::warn!("answers are broken off after {} seconds", limit.as_secs());
        break_off();
        let _ = tokio::time::timeout(Duration::from_secs(2), ended).await;
    }
}

async fn accept(listener: TcpListener, server: Arc<Server>, connections: Arc<GracefulShutdown>) {
    let router = router(Arc::clone(&server));
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, from)) => {
                let connection =
                    connect(stream, router.clone(), server.limits.client, &connections);
                tokio::spawn(async move {
                    if let Err(error) = connection.await {
                        tracing::debug!("{from}: {error}");
                    }
                    drop(place);
                });
            }
            // Such as too many open files: others may be closed soon.
            Err(error) => {
                tracing::warn!("a connection is not accepted: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// One connection, which is closed where its client neither sends a head nor takes what is sent for `patience`.
fn connect(
    stream: TcpStream,
    router: Router,
    patience: Duration,
    connections: &GracefulShutdown,
) -> impl Future<Output = hyper::Result<()>> + use<> {
    let _ = stream.set_nodelay(true);
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(patience));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router));
    connections.watch(connection)
}

/// The address as a browser takes it.
pub(crate) fn url(address: SocketAddr) -> String {
    format!("http://{address}/")
}
