/** Builds frames and batches, valid or not, that tests send as a peer. */
import {
  BATCH_HEADER_BYTES,
  BATCH_TYPE,
  CONTENT_TYPE,
  type ContentType,
  FRAME_HEADER_BYTES,
  LIMITS,
  MECHANISM,
  OP,
  PROTOCOL_VERSION,
  encodeAuth,
  encodeHello,
  recordBytes,
  sealBatch,
  textBytes,
  writeFrameHeader,
  writeRecordHead,
  writeText,
  type BatchStamp,
  type Hello,
  type RecordOptions,
} from '@sluice/protocol'
import { randomBytes } from 'node:crypto'

export function frame(
  opcode: number,
  channel: number,
  correlation: number,
  payload: Uint8Array = new Uint8Array(0),
): Uint8Array {
  const bytes = new Uint8Array(FRAME_HEADER_BYTES + payload.length)
  bytes.set(payload, writeFrameHeader(bytes, 0, payload.length, opcode, channel, correlation))
  return bytes
}

export function helloFrame(hello: Partial<Hello> = {}): Uint8Array {
  const payload = encodeHello({
    versionMin: PROTOCOL_VERSION,
    versionMax: PROTOCOL_VERSION,
    features: 0,
    frameBytesMax: LIMITS.frameBytesMax,
    heartbeatMs: LIMITS.heartbeatMsDefault,
    producer: randomBytes(16),
    acceptedNumber: 0,
    inFlightBatchesMax: LIMITS.inFlightBatchesDefault,
    name: 'peer',
    ...hello,
  })
  return frame(OP.HELLO, 0, 1, payload)
}

export function authFrame(mechanism: number = MECHANISM.anonymous): Uint8Array {
  return frame(OP.AUTH, 0, 2, encodeAuth({ mechanism, identity: '', secret: new Uint8Array(0) }))
}

export interface RecordOf {
  readonly payload: Uint8Array
  readonly options?: RecordOptions
  /** The content type is bytes by default. */
  readonly contentType?: ContentType
}

/** A batch whose checksum is correct even if other fields of its header are wrong. */
export function batch(
  batchNumber: number,
  records: readonly RecordOf[],
  stamp: Partial<BatchStamp> = {},
): Uint8Array {
  const sizes = records.map(({ payload, options }) => recordBytes(options, payload.length))
  const bytes = new Uint8Array(BATCH_HEADER_BYTES + sizes.reduce((sum, size) => sum + size, 0))
  let at = BATCH_HEADER_BYTES
  records.forEach(({ payload, options, contentType = CONTENT_TYPE.bytes }, index) => {
    bytes.set(payload, writeRecordHead(bytes, at, options, contentType, payload.length))
    at += sizes[index]!
  })
  sealBatch(bytes, 0, bytes.length, {
    type: BATCH_TYPE.messages,
    count: records.length,
    batchNumber,
    ...stamp,
  })
  return bytes
}

/** `unanswered`: the distance from the batch's number down to the lowest number without an answer. */
export function publishFrame(queue: string, batchBytes: Uint8Array, unanswered = 0): Uint8Array {
  const payload = new Uint8Array(1 + textBytes(queue) + batchBytes.length)
  payload[0] = writeText(payload, 1, queue)
  payload.set(batchBytes, 1 + payload[0])
  return frame(OP.PUBLISH, 0, unanswered, payload)
}
