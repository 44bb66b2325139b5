//! A proxy of Kubernetes' image service (`runtime.v1.ImageService`) to containerd, which reads the logins of pulls.
//! containerd does not pass its credentials to snapshotters. If the kubelet uses this endpoint
//! (`--image-service-endpoint`), each pull contains the kubelet's login: from a pod's secrets, a service account, or a
//! provider. Requests and answers are forwarded byte by byte, for any version of the interface; only a pull's image and
//! login are parsed.

use std::convert::Infallible;
use std::future::poll_fn;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt as _, Full, Limited};
use prost::Message as _;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tonic::codegen::{Bytes, Service};
use tonic::server::NamedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::logins::{self, Login, Logins, TOKEN};

/// The proxy.
#[derive(Clone)]
pub(crate) struct ImageService {
    containerd: Channel,
    logins: Arc<Logins>,
}

impl NamedService for ImageService {
    const NAME: &'static str = "runtime.v1.ImageService";
}

/// A pull (cri-api, `PullImageRequest`).
#[derive(Clone, PartialEq, prost::Message)]
struct Pull {
    #[prost(message, optional, tag = "1")]
    image: Option<Image>,
    #[prost(message, optional, tag = "2")]
    auth: Option<Auth>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Image {
    #[prost(string, tag = "1")]
    image: String,
}

/// cri-api, `AuthConfig`.
#[derive(Clone, PartialEq, prost::Message)]
struct Auth {
    #[prost(string, tag = "1")]
    username: String,
    #[prost(string, tag = "2")]
    password: String,
    /// Name and password, in base64.
    #[prost(string, tag = "3")]
    auth: String,
    /// Its registry; empty for any.
    #[prost(string, tag = "4")]
    server_address: String,
    #[prost(string, tag = "5")]
    identity_token: String,
}

/// The login of a pull.
struct Brought {
    repository: String,
    login: Login,
}

impl ImageService {
    /// Forwards to containerd at `socket`, which need not be up yet.
    ///
    /// # Errors
    /// [`tonic::transport::Error`] for a path that cannot be a socket.
    pub(crate) fn new(socket: &Path, logins: Arc<Logins>) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))?;
        Ok(Self { containerd: endpoint.connect_lazy(), logins })
    }

    async fn pass(&mut self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let away = |error: tonic::transport::Error| {
            Status::unavailable(format!("containerd cannot be reached: {}", peelfs::image::chain(&error)))
        };
        poll_fn(|context| self.containerd.poll_ready(context)).await.map_err(away)?;
        self.containerd.call(request).await.map_err(away)
    }

    /// Forwards a pull, after storing its login: containerd requests the image's layers during the call.
    async fn pull(&mut self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (head, body) = request.into_parts();
        let body = Limited::new(body, LONGEST).collect().await;
        let body = body.map_err(|error| Status::new(Code::InvalidArgument, error.to_string()))?.to_bytes();
        let brought = brought(&body);
        let before =
            brought.as_ref().and_then(|Brought { repository, login }| self.logins.learn(repository, login.clone()));
        let answer = self.pass(Request::from_parts(head, Body::new(Full::new(body)))).await;
        // A failed call has its status in the headers.
        let has_failed =
            |answer: &Response<Body>| answer.headers().get("grpc-status").is_some_and(|status| status != "0");
        if let Some(Brought { repository, login }) = brought
            && answer.as_ref().map_or(true, has_failed)
        {
            self.logins.unlearn(&repository, &login, before);
        }
        answer
    }
}

impl Service<Request<Body>> for ImageService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let mut service = self.clone();
        Box::pin(async move {
            let is_pull = request.uri().path().strip_prefix('/') == Some(PULL);
            let answer = if is_pull { service.pull(request).await } else { service.pass(request).await };
            Ok(answer.unwrap_or_else(Status::into_http))
        })
    }
}

/// The login in the body of a call, for the repository of its image; `None` if the body is compressed or malformed.
fn brought(body: &Bytes) -> Option<Brought> {
    let (compressed, rest) = body.split_first()?;
    let (length, message) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let message = message.get(..length).filter(|_| *compressed == 0)?;
    let Pull { image, auth } = Pull::decode(message).ok()?;
    let (image, auth) = (image?.image, auth?);
    let repository = logins::repository(&image)?;
    let of = |name: &str| logins::repository(&format!("{}/x/x", bare(name))).map(|name| host(&name).to_owned());
    if !auth.server_address.is_empty() && of(&auth.server_address).as_deref() != Some(host(&repository)) {
        return None;
    }
    Some(Brought { login: login(auth)?, repository })
}

fn host(repository: &str) -> &str {
    repository.split('/').next().unwrap_or_default()
}

/// A registry's name, which may be written as a URL.
fn bare(address: &str) -> &str {
    let address = address.split_once("://").map_or(address, |(_, rest)| rest);
    address.split('/').next().unwrap_or_default()
}

fn login(auth: Auth) -> Option<Login> {
    if !auth.identity_token.is_empty() {
        return Some(Login { username: TOKEN.to_owned(), secret: auth.identity_token });
    }
    if !auth.username.is_empty() {
        return Some(Login { username: auth.username, secret: auth.password });
    }
    let decoded = String::from_utf8(STANDARD.decode(auth.auth).ok()?).ok()?;
    let (username, secret) = decoded.trim_end_matches('\0').split_once(':')?;
    Some(Login { username: username.to_owned(), secret: secret.to_owned() })
}

const PULL: &str = "runtime.v1.ImageService/PullImage";
/// Bytes of a pull's request.
const LONGEST: usize = 16 << 20;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn body(image: &str, auth: Option<Auth>) -> Bytes {
        let message = Pull { image: Some(Image { image: image.to_owned() }), auth }.encode_to_vec();
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[0], &length[..], &message].concat().into()
    }

    #[test]
    fn a_pull_brings_the_login_for_its_repository() {
        let password = |address: &str| Auth {
            username: "u".into(),
            password: "p".into(),
            server_address: address.into(),
            ..Auth::default()
        };
        let of = |auth| brought(&body("reg.test:5000/team/app:1", Some(auth)));
        for (auth, wanted) in [
            (password(""), Some(("u", "p"))),
            (password("https://reg.test:5000/v2/"), Some(("u", "p"))),
            (password("other.test"), None),
            (Auth { auth: STANDARD.encode("u:p:q\0"), ..Auth::default() }, Some(("u", "p:q"))),
            (Auth { auth: "?".into(), ..Auth::default() }, None),
            (Auth { identity_token: "t".into(), ..password("") }, Some((TOKEN, "t"))),
            (Auth::default(), None),
        ] {
            let found = of(auth);
            let found = found.as_ref().map(|found| (found.login.username.as_str(), found.login.secret.as_str()));
            assert_eq!(found, wanted);
        }
        assert_eq!(of(password("")).unwrap().repository, "reg.test:5000/team/app");
        let hub = brought(&body("python:3.12", Some(password("https://index.docker.io/v1/")))).unwrap();
        assert_eq!(hub.repository, "docker.io/library/python");
    }

    #[test]
    fn a_body_that_makes_no_sense_brings_nothing() {
        let whole = body("a/b", Some(Auth { username: "u".into(), ..Auth::default() }));
        for cut in 0..whole.len() {
            assert!(brought(&whole.slice(..cut)).is_none(), "{cut}");
        }
        let compressed = [&[1], &whole[1..]].concat().into();
        assert!(brought(&compressed).is_none() && brought(&body("oci:/etc", None)).is_none());
    }
}
