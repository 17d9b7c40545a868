/** Reads the payload of any frame with the decoders of the protocol package, as a broker or a client does. */
import {
  BATCH_HEADER_BYTES,
  DELIVER_FLAG,
  DELIVER_HEADER_BYTES,
  OP,
  RECORD_FLAG,
  RECORD_HEADER_BYTES,
  SCATTERED_BYTES,
  SluiceError,
  batchFollows,
  bindingRequest,
  bindingsRequest,
  cancelRequest,
  checkBatch,
  checkRecords,
  closeConsumerRequest,
  consumersRequest,
  decodeAnswer,
  decodeAtomic,
  decodeAtomicOk,
  decodeAuth,
  decodeControl,
  decodeCredit,
  decodeDeliverHead,
  decodeDrained,
  decodeExtend,
  decodeFault,
  decodeGoodbye,
  decodeHello,
  decodeHelloOk,
  decodeLeasesLost,
  decodeMailbox,
  decodeMessages,
  decodePublishErr,
  decodePublishOk,
  decodeRanges,
  decodeReadAt,
  decodeReadOk,
  decodeReplied,
  decodeReply,
  decodeSettle,
  decodeSubscribed,
  decodeSubscriptionId,
  discardRequest,
  ensureGroupRequest,
  ensureRequest,
  ensureStreamRequest,
  exact,
  explainRequest,
  historyRequest,
  kindOf,
  kindRequest,
  listRequest,
  moveRequest,
  nameRequest,
  peekRequest,
  publishBatchStart,
  queueName,
  readBatchHeader,
  readRecordOptions,
  readRequest,
  readText,
  readU16,
  readU32,
  readU64,
  redriveRequest,
  replayRequest,
  rescheduleRequest,
  scheduleNameRequest,
  scheduleRequest,
  schedulesRequest,
  routesRequest,
  subscribeRequest,
  type Body,
} from '@sluice/protocol'

type Reader = (bytes: Uint8Array, start: number, end: number) => unknown

const MESSAGE_BYTES_MAX = 1024 * 1024

const ENSURES = { queue: ensureRequest, stream: ensureStreamRequest, group: ensureGroupRequest } as const

export const READERS: ReadonlyMap<number, Reader> = new Map<number, Reader>([
  [OP.HELLO, decodeHello],
  [OP.HELLO_OK, decodeHelloOk],
  [OP.AUTH, decodeAuth],
  [OP.PING, (_bytes, start, end) => exact('PING', end - start, 0)],
  [OP.PONG, (_bytes, start, end) => exact('PONG', end - start, 0)],
  [OP.GOODBYE, decodeGoodbye],
  [OP.ERROR, decodeFault],
  [OP.PUBLISH, readPublish],
  [OP.PUBLISH_OK, readPublishOk],
  [OP.PUBLISH_ERR, decodePublishErr],
  [OP.ATOMIC, readAtomic],
  [OP.ATOMIC_OK, decodeAtomicOk],
  [OP.SUBSCRIBE, request(subscribeRequest)],
  [OP.SUBSCRIBE_OK, decodeSubscribed],
  [OP.CREDIT, decodeCredit],
  [OP.DELIVER, readDeliver],
  [OP.STARTED, (...payload) => decodeRanges('STARTED', ...payload)],
  [OP.STARTING, (...payload) => decodeRanges('STARTING', ...payload)],
  [OP.SETTLE, decodeSettle],
  [OP.SETTLE_OK, (...payload) => decodeRanges('SETTLE_OK', ...payload)],
  [OP.EXTEND, decodeExtend],
  [OP.LEASES_LOST, decodeLeasesLost],
  [OP.UNSUBSCRIBE, (...payload) => decodeSubscriptionId('UNSUBSCRIBE', ...payload)],
  [OP.DRAINED, decodeDrained],
  [OP.ENSURE, request((body) => ENSURES[kindOf(body)](body))],
  [OP.GET, request((body) => kindRequest('GET', body))],
  [OP.LIST, request(listRequest)],
  [OP.DELETE, request((body) => kindRequest('DELETE', body))],
  [OP.PURGE, request((body) => nameRequest('PURGE', body))],
  [OP.PAUSE, request((body) => nameRequest('PAUSE', body))],
  [OP.RESUME, request((body) => nameRequest('RESUME', body))],
  [OP.PEEK, request(peekRequest)],
  [OP.MESSAGES, decodeMessages],
  [OP.REDRIVE, request(redriveRequest)],
  [OP.DISCARD, request(discardRequest)],
  [OP.CANCEL, request(cancelRequest)],
  [OP.RESCHEDULE, request(rescheduleRequest)],
  [OP.REPLAY, request(replayRequest)],
  [OP.HISTORY, request(historyRequest)],
  [OP.EXPLAIN, request(explainRequest)],
  [OP.CONSUMERS, request(consumersRequest)],
  [OP.CLOSE_CONSUMER, request(closeConsumerRequest)],
  [OP.READ, request(readRequest)],
  [OP.READ_OK, decodeReadOk],
  [OP.READ_AT, decodeReadAt],
  [OP.MAILBOX, decodeMailbox],
  [
    OP.REPLY,
    (bytes, start, end) => {
      const { mailbox, answerAt } = decodeReply(bytes, start, end, MESSAGE_BYTES_MAX)
      return { mailbox, answer: decodeAnswer(bytes, answerAt, end) }
    },
  ],
  [OP.REPLIED, decodeReplied],
  [OP.ANSWER, decodeAnswer],
  [OP.BIND, request((body) => bindingRequest('BIND', body))],
  [OP.UNBIND, request((body) => bindingRequest('UNBIND', body))],
  [OP.BINDINGS, request(bindingsRequest)],
  [OP.MOVE, request(moveRequest)],
  [OP.ROUTES, request(routesRequest)],
  [OP.SCHEDULE, request(scheduleRequest)],
  [OP.SCHEDULES, request(schedulesRequest)],
  [OP.UNSCHEDULE, request((body) => scheduleNameRequest('UNSCHEDULE', body))],
  [OP.RUN_SCHEDULE, request((body) => scheduleNameRequest('RUN_SCHEDULE', body))],
  [OP.RESULT, decodeControl],
])

function request(read: (body: Body) => unknown): Reader {
  return (...payload) => read(decodeControl(...payload))
}

/** The records in `bytes[start, end)`: the options, content type and payload of each. */
export function readRecords(bytes: Uint8Array, start: number, end: number, count: number): unknown[] {
  const found = checkRecords(bytes, start, end, count, MESSAGE_BYTES_MAX)
  if (typeof found !== 'number') throw new SluiceError(found.code, found.message)
  const records: unknown[] = []
  for (let at = start; at < end; at += readU32(bytes, at)) {
    const payloadAt = at + RECORD_HEADER_BYTES + readU16(bytes, at + 6)
    const replaces = (bytes[at + 4]! & RECORD_FLAG.replaces) !== 0
    records.push({
      options: { ...readRecordOptions(bytes, at), ...(replaces ? { replaces } : {}) },
      contentType: bytes[at + 5]! >> 5,
      payload: bytes.slice(payloadAt, at + readU32(bytes, at)),
    })
  }
  return records
}

export function readBatch(bytes: Uint8Array, start: number, end: number): unknown {
  checkBatch(bytes, start, end)
  const header = readBatchHeader(bytes, start)
  const follows = batchFollows(bytes, start)
  return { header, follows, records: readRecords(bytes, start + BATCH_HEADER_BYTES, end, header.count) }
}

function readPublish(bytes: Uint8Array, start: number, end: number): unknown {
  const batchAt = publishBatchStart(bytes, start, end)
  const queue = queueName(readText(bytes, start + 1, batchAt))
  return { queue, batch: readBatch(bytes, batchAt, end) }
}

function readAtomic(bytes: Uint8Array, start: number, end: number): unknown {
  const { batches, ...step } = decodeAtomic(bytes, start, end)
  return {
    ...step,
    batches: batches.map((of) => ({
      queue: queueName(of.queue),
      batch: readBatch(of.bytes, of.at, of.end),
    })),
  }
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
  const from = start + DELIVER_HEADER_BYTES
  if ((head.flags & DELIVER_FLAG.scattered) === 0)
    return { head, records: readRecords(bytes, from, end, head.count) }
  const found = checkRecords(bytes, from, end, head.count, MESSAGE_BYTES_MAX, SCATTERED_BYTES)
  if (typeof found !== 'number') throw new SluiceError(found.code, found.message)
  const records: unknown[] = []
  for (let at = from; at < end;) {
    const recordAt = at + SCATTERED_BYTES
    const next = recordAt + readU32(bytes, recordAt)
    const [record] = readRecords(bytes, recordAt, next, 1)
    records.push({ offset: readU64(bytes, at), publishedAtMs: readU64(bytes, at + 8), record })
    at = next
  }
  return { head, records }
}
