//! The objects of the server, and the requests on them.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use s3s::auth::{S3Auth, SecretKey};
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CommonPrefix, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CopyObjectInput, CopyObjectOutput, CopyObjectResult, CopyPartResult,
    CopySource, CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteObjectInput,
    DeleteObjectOutput, DeleteObjectsInput, DeleteObjectsOutput, DeletedObject, ETag, ETagCondition,
    GetObjectInput, GetObjectOutput, HeadObjectInput, HeadObjectOutput, IfMatch, IfNoneMatch,
    ListObjectsV2Input, ListObjectsV2Output, Object, PutObjectInput, PutObjectOutput, Range, StreamingBlob,
    Timestamp, UploadPartCopyInput, UploadPartCopyOutput, UploadPartInput, UploadPartOutput,
};
use s3s::{Body, S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};

use super::{Shared, TestS3};

/// An object in a bucket. It is cheap to clone.
#[derive(Debug, Clone)]
pub struct StoredObject {
    /// Its content.
    pub content: Bytes,
    /// The content type that the client sent.
    pub content_type: Option<String>,
    modified: SystemTime,
    version: u64,
}

impl StoredObject {
    fn size(&self) -> i64 {
        i64::try_from(self.content.len()).unwrap()
    }

    fn modified(&self) -> Timestamp {
        self.modified.into()
    }

    fn tag(&self) -> ETag {
        ETag::Strong(format!("{:032x}", self.version))
    }
}

#[derive(Debug, Default)]
pub(super) struct Files {
    buckets: Mutex<BTreeMap<String, BTreeMap<String, StoredObject>>>,
    uploads: Mutex<HashMap<String, Upload>>,
    versions: AtomicU64,
}

/// A multipart upload that is not complete.
#[derive(Debug, Default)]
struct Upload {
    content_type: Option<String>,
    parts: BTreeMap<i32, Bytes>,
}

/// The condition of a write.
struct Condition {
    if_match: Option<IfMatch>,
    if_none_match: Option<IfNoneMatch>,
}

impl Condition {
    fn is_some(&self) -> bool {
        self.if_match.is_some() || self.if_none_match.is_some()
    }

    fn check(&self, there: Option<&StoredObject>) -> S3Result<()> {
        let matches = |wanted: &ETagCondition, there: &StoredObject| match wanted {
            ETagCondition::Any => true,
            ETagCondition::ETag(tag) => *tag == there.tag(),
        };
        match (&self.if_match, there) {
            (Some(_), None) => return Err(s3_error!(NoSuchKey)),
            (Some(wanted), Some(there)) if !matches(wanted, there) => {
                return Err(s3_error!(PreconditionFailed));
            }
            _ => {}
        }
        match (&self.if_none_match, there) {
            (Some(unwanted), Some(there)) if matches(unwanted, there) => Err(s3_error!(PreconditionFailed)),
            _ => Ok(()),
        }
    }
}

impl Files {
    pub(super) fn make_bucket(&self, bucket: &str) {
        self.buckets.lock().unwrap().entry(bucket.to_owned()).or_default();
    }

    /// Has no effect if the bucket does not exist.
    pub(super) fn put(
        &self,
        bucket: &str,
        key: &str,
        content_type: Option<String>,
        content: Bytes,
    ) -> Option<StoredObject> {
        let object = self.object(content_type, content);
        let mut buckets = self.buckets.lock().unwrap();
        buckets.get_mut(bucket)?.insert(key.to_owned(), object.clone());
        Some(object)
    }

    fn object(&self, content_type: Option<String>, content: Bytes) -> StoredObject {
        StoredObject {
            content,
            content_type,
            modified: SystemTime::now(),
            version: self.next(),
        }
    }

    pub(super) fn get(&self, bucket: &str, key: &str) -> Option<StoredObject> {
        self.buckets.lock().unwrap().get(bucket)?.get(key).cloned()
    }

    pub(super) fn remove(&self, bucket: &str, key: &str) {
        if let Some(objects) = self.buckets.lock().unwrap().get_mut(bucket) {
            objects.remove(key);
        }
    }

    pub(super) fn open_uploads(&self) -> usize {
        self.uploads.lock().unwrap().len()
    }

    pub(super) fn keys(&self, bucket: &str) -> Vec<String> {
        let buckets = self.buckets.lock().unwrap();
        buckets
            .get(bucket)
            .into_iter()
            .flat_map(BTreeMap::keys)
            .cloned()
            .collect()
    }

    fn find(&self, bucket: &str, key: &str) -> S3Result<StoredObject> {
        self.check_bucket(bucket)?;
        self.get(bucket, key).ok_or_else(|| s3_error!(NoSuchKey))
    }

    fn store(
        &self,
        bucket: &str,
        key: &str,
        content_type: Option<String>,
        content: Bytes,
    ) -> S3Result<StoredObject> {
        let stored = self.put(bucket, key, content_type, content);
        stored.ok_or_else(|| s3_error!(NoSuchBucket))
    }

    /// Stores an object if the existing one meets the condition of the client.
    fn store_if(
        &self,
        bucket: &str,
        key: &str,
        content_type: Option<String>,
        content: Bytes,
        condition: &Condition,
    ) -> S3Result<StoredObject> {
        let object = self.object(content_type, content);
        let mut buckets = self.buckets.lock().unwrap();
        let objects = buckets.get_mut(bucket).ok_or_else(|| s3_error!(NoSuchBucket))?;
        condition.check(objects.get(key))?;
        objects.insert(key.to_owned(), object.clone());
        Ok(object)
    }

    fn check_bucket(&self, bucket: &str) -> S3Result<()> {
        match self.buckets.lock().unwrap().contains_key(bucket) {
            true => Ok(()),
            false => Err(s3_error!(NoSuchBucket)),
        }
    }

    fn next(&self) -> u64 {
        self.versions.fetch_add(1, Ordering::Relaxed)
    }
}

/// The accepted credentials.
pub(super) struct Keys;

#[async_trait]
impl S3Auth for Keys {
    async fn get_secret_key(&self, access_key: &str) -> S3Result<SecretKey> {
        if access_key == TestS3::ACCESS_KEY_ID {
            Ok(TestS3::SECRET_ACCESS_KEY.into())
        } else {
            Err(s3_error!(InvalidAccessKeyId))
        }
    }
}

/// The requests of the protocol.
pub(super) struct Storage(pub(super) Arc<Shared>);

#[async_trait]
impl S3 for Storage {
    async fn get_object(&self, request: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = request.input;
        let object = self.0.files.find(&input.bucket, &input.key)?;
        let (content, content_range) = cut_out(&object.content, input.range)?;
        Ok(S3Response::new(GetObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(i64::try_from(content.len()).unwrap()),
            content_range,
            content_type: object.content_type.clone(),
            e_tag: Some(object.tag()),
            last_modified: Some(object.modified()),
            body: Some(StreamingBlob::from(Body::from(content))),
            ..GetObjectOutput::default()
        }))
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let object = self.0.files.find(&request.input.bucket, &request.input.key)?;
        Ok(S3Response::new(HeadObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(object.size()),
            content_type: object.content_type.clone(),
            e_tag: Some(object.tag()),
            last_modified: Some(object.modified()),
            ..HeadObjectOutput::default()
        }))
    }

    async fn put_object(&self, request: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = request.input;
        let content = collect(input.body).await?;
        let condition = Condition {
            if_match: input.if_match,
            if_none_match: input.if_none_match,
        };
        if condition.is_some() && !self.0.conditions.load(Ordering::Relaxed) {
            return Err(s3_error!(NotImplemented));
        }
        let object =
            self.0
                .files
                .store_if(&input.bucket, &input.key, input.content_type, content, &condition)?;
        Ok(S3Response::new(PutObjectOutput {
            e_tag: Some(object.tag()),
            ..PutObjectOutput::default()
        }))
    }

    async fn copy_object(
        &self,
        request: S3Request<CopyObjectInput>,
    ) -> S3Result<S3Response<CopyObjectOutput>> {
        let input = request.input;
        let CopySource::Bucket { bucket, key, .. } = input.copy_source else {
            return Err(s3_error!(NotImplemented));
        };
        let source = self.0.files.find(&bucket, &key)?;
        let copy = self
            .0
            .files
            .store(&input.bucket, &input.key, source.content_type, source.content)?;
        Ok(S3Response::new(CopyObjectOutput {
            copy_object_result: Some(CopyObjectResult {
                e_tag: Some(copy.tag()),
                last_modified: Some(copy.modified()),
                ..CopyObjectResult::default()
            }),
            ..CopyObjectOutput::default()
        }))
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        self.0.files.check_bucket(&request.input.bucket)?;
        self.0.files.remove(&request.input.bucket, &request.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        request: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let input = request.input;
        self.0.files.check_bucket(&input.bucket)?;
        let mut deleted = Vec::new();
        for object in input.delete.objects {
            self.0.files.remove(&input.bucket, &object.key);
            deleted.push(DeletedObject {
                key: Some(object.key),
                ..DeletedObject::default()
            });
        }
        Ok(S3Response::new(DeleteObjectsOutput {
            deleted: Some(deleted),
            ..DeleteObjectsOutput::default()
        }))
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = request.input;
        let buckets = self.0.files.buckets.lock().unwrap();
        let objects = buckets
            .get(&input.bucket)
            .ok_or_else(|| s3_error!(NoSuchBucket))?;
        let prefix = input.prefix.clone().unwrap_or_default();
        let most = usize::try_from(input.max_keys.unwrap_or(1000))
            .unwrap_or(0)
            .min(1000);
        let mut after = input
            .continuation_token
            .clone()
            .or_else(|| input.start_after.clone());
        let (mut contents, mut prefixes) = (Vec::new(), Vec::<CommonPrefix>::new());
        let mut more = false;
        let begin = after.clone().filter(|after| **after >= *prefix);
        let begin = begin
            .as_deref()
            .map_or(Bound::Included(&*prefix), Bound::Excluded);
        for (key, object) in objects.range::<str, _>((begin, Bound::Unbounded)) {
            let Some(rest) = key.strip_prefix(&*prefix) else {
                break;
            };
            let folder = input.delimiter.as_ref().and_then(|delimiter| {
                Some(&key[..prefix.len() + rest.find(&**delimiter)? + delimiter.len()])
            });
            // The last page contained this folder already.
            let known = folder.is_some_and(|folder| {
                prefixes
                    .last()
                    .is_some_and(|last| last.prefix.as_deref() == Some(folder))
                    || input
                        .continuation_token
                        .as_ref()
                        .is_some_and(|token| token.starts_with(folder))
            });
            if !known {
                if contents.len() + prefixes.len() == most {
                    more = true;
                    break;
                }
                match folder {
                    Some(folder) => prefixes.push(CommonPrefix {
                        prefix: Some(folder.to_owned()),
                    }),
                    None => contents.push(Object {
                        key: Some(key.clone()),
                        size: Some(object.size()),
                        e_tag: Some(object.tag()),
                        last_modified: Some(object.modified()),
                        ..Object::default()
                    }),
                }
            }
            after = Some(key.clone());
        }
        Ok(S3Response::new(ListObjectsV2Output {
            key_count: Some(i32::try_from(contents.len() + prefixes.len()).unwrap()),
            max_keys: Some(i32::try_from(most).unwrap()),
            contents: Some(contents),
            common_prefixes: Some(prefixes),
            is_truncated: Some(more),
            next_continuation_token: after.filter(|_| more),
            continuation_token: input.continuation_token,
            delimiter: input.delimiter,
            name: Some(input.bucket),
            prefix: input.prefix,
            start_after: input.start_after,
            ..ListObjectsV2Output::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = request.input;
        self.0.files.check_bucket(&input.bucket)?;
        let id = format!("upload-{}", self.0.files.next());
        let upload = Upload {
            content_type: input.content_type,
            parts: BTreeMap::new(),
        };
        self.0.files.uploads.lock().unwrap().insert(id.clone(), upload);
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            ..CreateMultipartUploadOutput::default()
        }))
    }

    async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let input = request.input;
        let content = collect(input.body).await?;
        let mut uploads = self.0.files.uploads.lock().unwrap();
        let upload = uploads
            .get_mut(&input.upload_id)
            .ok_or_else(|| s3_error!(NoSuchUpload))?;
        upload.parts.insert(input.part_number, content);
        Ok(S3Response::new(UploadPartOutput {
            e_tag: Some(ETag::Strong(format!("{}-{}", input.upload_id, input.part_number))),
            ..UploadPartOutput::default()
        }))
    }

    async fn upload_part_copy(
        &self,
        request: S3Request<UploadPartCopyInput>,
    ) -> S3Result<S3Response<UploadPartCopyOutput>> {
        let input = request.input;
        let CopySource::Bucket { bucket, key, .. } = input.copy_source else {
            return Err(s3_error!(NotImplemented));
        };
        let source = self.0.files.find(&bucket, &key)?;
        let mut uploads = self.0.files.uploads.lock().unwrap();
        let upload = uploads
            .get_mut(&input.upload_id)
            .ok_or_else(|| s3_error!(NoSuchUpload))?;
        upload.parts.insert(input.part_number, source.content);
        let tag = ETag::Strong(format!("{}-{}", input.upload_id, input.part_number));
        Ok(S3Response::new(UploadPartCopyOutput {
            copy_part_result: Some(CopyPartResult {
                e_tag: Some(tag),
                ..CopyPartResult::default()
            }),
            ..UploadPartCopyOutput::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = request.input;
        let condition = Condition {
            if_match: input.if_match,
            if_none_match: input.if_none_match,
        };
        if condition.is_some() && !self.0.conditions.load(Ordering::Relaxed) {
            return Err(s3_error!(NotImplemented));
        }
        let upload = self.0.files.uploads.lock().unwrap().remove(&input.upload_id);
        let upload = upload.ok_or_else(|| s3_error!(NoSuchUpload))?;
        let mut content = BytesMut::new();
        for part in input
            .multipart_upload
            .and_then(|upload| upload.parts)
            .unwrap_or_default()
        {
            let part = part.part_number.and_then(|number| upload.parts.get(&number));
            content.extend_from_slice(part.ok_or_else(|| s3_error!(InvalidPart))?);
        }
        let object = self.0.files.store_if(
            &input.bucket,
            &input.key,
            upload.content_type,
            content.freeze(),
            &condition,
        )?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            e_tag: Some(object.tag()),
            bucket: Some(input.bucket),
            key: Some(input.key),
            ..CompleteMultipartUploadOutput::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let upload = self
            .0
            .files
            .uploads
            .lock()
            .unwrap()
            .remove(&request.input.upload_id);
        match upload {
            Some(_) => Ok(S3Response::new(AbortMultipartUploadOutput::default())),
            None => Err(s3_error!(NoSuchUpload)),
        }
    }
}

async fn collect(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let mut content = BytesMut::new();
    let Some(mut body) = body else {
        return Ok(content.freeze());
    };
    let broken = |error| S3Error::with_source(S3ErrorCode::IncompleteBody, error);
    while let Some(chunk) = body.next().await {
        content.extend_from_slice(&chunk.map_err(broken)?);
    }
    Ok(content.freeze())
}

fn cut_out(content: &Bytes, range: Option<Range>) -> S3Result<(Bytes, Option<String>)> {
    let Some(range) = range else {
        return Ok((content.clone(), None));
    };
    let part = range.check(content.len() as u64)?;
    let said = format!("bytes {}-{}/{}", part.start, part.end - 1, content.len());
    let (start, end) = (
        usize::try_from(part.start).unwrap(),
        usize::try_from(part.end).unwrap(),
    );
    Ok((content.slice(start..end), Some(said)))
}
