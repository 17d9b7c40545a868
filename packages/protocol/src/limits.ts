/**
 * Every limit of the protocol, in one place. Units and bounds are the last word of each name.
 * Relations between limits are asserted when the module is loaded.
 */

const KIB = 1024
const MIB = 1024 * KIB

export const LIMITS = {
  /** Largest frame, header included, that is accepted from a peer that has not authenticated. */
  frameBytesUnauthenticated: 8 * KIB,
  /** Largest frame, header included, unless the handshake agrees on another. */
  frameBytesDefault: 4 * MIB,
  frameBytesMin: 64 * KIB,
  frameBytesMax: 16 * MIB,
  /** Largest msgpack body of a control frame. */
  controlBytesMax: 64 * KIB,
  /** Deepest nesting of maps and lists in msgpack, the outermost one counted. */
  controlDepthMax: 64,
  /** Largest message: payload and options, without the record's own 8 bytes. */
  messageBytesDefault: 1 * MIB,
  messageBytesMax: 15 * MIB,
  /** Largest batch of several messages. A batch of one message may be larger. */
  batchBytesMax: 1 * MIB,
  /** Target of a client that packs independent messages into one batch. */
  batchBytesTarget: 64 * KIB,
  /**
   * The same for messages with a delay or a time. Each becomes due on its own, and the broker reads its whole batch
   * then.
   */
  batchBytesScheduledTarget: 16 * KIB,
  batchCountMax: 65_535,
  queueNameBytesMax: 255,
  clientNameBytesMax: 255,
  credentialBytesMax: 1024,
  keyBytesMax: 255,
  idBytesMax: 255,
  headersMax: 64,
  headersBytesMax: 16 * KIB,
  priorityMax: 31,
  channelMax: 65_535,
  creditMessagesMax: 65_535,
  creditBytesMax: 0xffff_ffff,
  /** Most items of one SETTLE frame. */
  rangesMax: 16_384,
  /** Longest text of an error, a notice, or a reason given with a settle. */
  reasonBytesMax: 4 * KIB,
  heartbeatMsMin: 100,
  heartbeatMsDefault: 10_000,
  heartbeatMsMax: 300_000,
  handshakeMsMax: 5_000,
  /** Most batches that one producer may have unanswered; also the length of its window at the broker. */
  inFlightBatchesDefault: 4_096,
  inFlightBatchesMax: 16_384,
  inFlightBytesDefault: 16 * MIB,
  /** 100 years. */
  delayMsMax: 100 * 365.25 * 24 * 3600 * 1000,
  /** An `at` in the past, by at most this, means now. */
  atPastMsMax: 60_000,
  /** The largest value of the fields in frames. With unlimited deliveries, attempts above it are reported as this value. */
  maxDeliveriesMax: 65_535,
  keyConcurrencyMax: 65_535,
  dedupMaxIdsMax: 16_000_000,
  processingTimeoutMsMin: 100,
  /** Leases that one SUBSCRIBE claims. */
  claimsMax: 1_024,
  /** Of one atomic step: acknowledged messages, batches, and messages in all batches together. */
  atomicAcksMax: 65_535,
  atomicBatchesMax: 1_024,
  atomicMessagesMax: 65_535,
  /** Messages that one PEEK, REDRIVE, DISCARD or REPLAY returns or changes. */
  pageMessagesMax: 1_000,
  /** Redrives of one message, unless a redrive is forced. */
  redrivesMax: 10,
} as const

/** The numbers that bound one frame, as agreed in a handshake. */
export type Limits = typeof LIMITS

function relation(holds: boolean, what: string): void {
  if (!holds) throw new Error(`limits contradict each other: ${what}`)
}

/** Bytes that a PUBLISH frame and a batch header add around one record, at most. */
export const MESSAGE_OVERHEAD_BYTES = 12 + 1 + LIMITS.queueNameBytesMax + 48 + 8

relation(
  LIMITS.messageBytesDefault + MESSAGE_OVERHEAD_BYTES <= LIMITS.frameBytesDefault,
  'message fits a default frame',
)
relation(
  LIMITS.messageBytesMax + MESSAGE_OVERHEAD_BYTES <= LIMITS.frameBytesMax,
  'largest message fits the largest frame',
)
relation(
  LIMITS.batchBytesMax + MESSAGE_OVERHEAD_BYTES <= LIMITS.frameBytesDefault,
  'batch fits a default frame',
)
relation(LIMITS.batchBytesTarget <= LIMITS.batchBytesMax, 'batch target within batch limit')
relation(
  LIMITS.batchBytesScheduledTarget + MESSAGE_OVERHEAD_BYTES <= LIMITS.frameBytesMin,
  'a batch of scheduled messages fits every agreed frame',
)
relation(LIMITS.controlBytesMax + 12 <= LIMITS.frameBytesDefault, 'control body fits a frame')
relation(LIMITS.rangesMax * 20 + 16 <= LIMITS.frameBytesDefault, 'settle items fit a frame')
// Every agreed frame size has room for the largest batch, so what must fit any frame is compared with that.
relation(LIMITS.creditMessagesMax * 8 + 16 <= LIMITS.batchBytesMax, 'ranges fit every agreed frame')
relation(LIMITS.batchCountMax * 12 + 32 <= LIMITS.batchBytesMax, 'duplicates fit every agreed frame')
relation(
  LIMITS.atomicBatchesMax * 12 + LIMITS.atomicMessagesMax * 12 + 24 <= LIMITS.batchBytesMax,
  'places and duplicates of an atomic step fit every agreed frame',
)
relation(
  LIMITS.pageMessagesMax * 9 + 3 * LIMITS.queueNameBytesMax + 8192 <= LIMITS.controlBytesMax,
  'a list of offsets fits a control body',
)
relation(
  LIMITS.keyBytesMax + LIMITS.idBytesMax + LIMITS.headersBytesMax + 32 <= 0xffff,
  'options fit their u16 length',
)
