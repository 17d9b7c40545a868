/** Reads the payload of any frame with the decoders of the protocol package, as a broker or a client would. */
import {
  BATCH_HEADER_BYTES,
  DELIVER_HEADER_BYTES,
  OP,
  RECORD_HEADER_BYTES,
  SluiceError,
  checkBatch,
  checkRecords,
  decodeAuth,
  decodeControl,
  decodeCredit,
  decodeDeliverHead,
  decodeDrained,
  decodeFault,
  decodeGoodbye,
  decodeHello,
  decodeHelloOk,
  decodePublishErr,
  decodePublishOk,
  decodeRanges,
  decodeSettle,
  decodeSubscriptionId,
  ensureRequest,
  exact,
  nameRequest,
  onlyFields,
  publishBatchStart,
  queueName,
  readBatchHeader,
  readRecordOptions,
  readText,
  readU16,
  readU32,
  subscribeRequest,
} from '@sluice/protocol'

type Reader = (bytes: Uint8Array, start: number, end: number) => unknown

const MESSAGE_BYTES_MAX = 1024 * 1024

export const READERS: ReadonlyMap<number, Reader> = new Map<number, Reader>([
  [OP.HELLO, decodeHello],
  [OP.HELLO_OK, decodeHelloOk],
  [OP.AUTH, decodeAuth],
  [OP.PING, (_bytes, start, end) => exact('PING', end - start, 0)],
  [OP.PONG, (_bytes, start, end) => exact('PONG', end - start, 0)],
  [OP.GOODBYE, decodeGoodbye],
  [OP.ERROR, decodeFault],
  [OP.NOTICE, decodeFault],
  [OP.PUBLISH, readPublish],
  [OP.PUBLISH_OK, readPublishOk],
  [OP.PUBLISH_ERR, decodePublishErr],
  [OP.SUBSCRIBE, (...payload) => subscribeRequest(decodeControl(...payload))],
  [OP.SUBSCRIBE_OK, (...payload) => decodeSubscriptionId('SUBSCRIBE_OK', ...payload)],
  [OP.CREDIT, decodeCredit],
  [OP.DELIVER, readDeliver],
  [OP.STARTED, (...payload) => decodeRanges('STARTED', ...payload)],
  [OP.SETTLE, decodeSettle],
  [OP.SETTLE_OK, (...payload) => decodeRanges('SETTLE_OK', ...payload)],
  [OP.UNSUBSCRIBE, (...payload) => decodeSubscriptionId('UNSUBSCRIBE', ...payload)],
  [OP.DRAINED, decodeDrained],
  [OP.ENSURE, (...payload) => ensureRequest(decodeControl(...payload))],
  [OP.GET, (...payload) => nameRequest('GET', decodeControl(...payload))],
  [OP.LIST, readList],
  [OP.DELETE, (...payload) => nameRequest('DELETE', decodeControl(...payload))],
  [OP.PURGE, (...payload) => nameRequest('PURGE', decodeControl(...payload))],
  [OP.RESULT, decodeControl],
])

/** The records in `bytes[start, end)`: options, content type and payload of each. */
export function readRecords(bytes: Uint8Array, start: number, end: number, count: number): unknown[] {
  const found = checkRecords(bytes, start, end, count, MESSAGE_BYTES_MAX)
  if (typeof found !== 'number') throw new SluiceError(found.code, found.message)
  const records: unknown[] = []
  for (let at = start; at < end; at += readU32(bytes, at)) {
    const payloadAt = at + RECORD_HEADER_BYTES + readU16(bytes, at + 6)
    records.push({
      options: readRecordOptions(bytes, at),
      contentType: bytes[at + 5]! >> 5,
      payload: bytes.slice(payloadAt, at + readU32(bytes, at)),
    })
  }
  return records
}

export function readBatch(bytes: Uint8Array, start: number, end: number): unknown {
  checkBatch(bytes, start, end)
  const header = readBatchHeader(bytes, start)
  return { header, records: readRecords(bytes, start + BATCH_HEADER_BYTES, end, header.count) }
}

function readList(bytes: Uint8Array, start: number, end: number): unknown {
  const body = decodeControl(bytes, start, end)
  onlyFields('LIST', body, ['after'])
  return body
}

function readPublish(bytes: Uint8Array, start: number, end: number): unknown {
  const batchAt = publishBatchStart(bytes, start, end)
  const queue = queueName(readText(bytes, start + 1, batchAt))
  return { queue, batch: readBatch(bytes, batchAt, end) }
}

function readPublishOk(bytes: Uint8Array, start: number, end: number): unknown {
  const items: unknown[] = []
  decodePublishOk(bytes, start, end, (batchNumber, baseOffset, duplicates) => {
    items.push({ batchNumber, baseOffset, duplicates: [...(duplicates ?? [])] })
  })
  return { items }
}

function readDeliver(bytes: Uint8Array, start: number, end: number): unknown {
  const head = decodeDeliverHead(bytes, start, end)
  return { head, records: readRecords(bytes, start + DELIVER_HEADER_BYTES, end, head.count) }
}
