/**
 * The frames that a client can send: the stage at which each frame is legal, and the handler of the frame. A handler
 * decodes the frame, calls a part of the connection, and encodes the answer. The session looks up the handler of each
 * frame that arrives.
 */
import {
  OP,
  OPCODES,
  SluiceError,
  decodeControl,
  decodeCredit,
  decodeExtend,
  decodeRanges,
  decodeSettle,
  decodeSubscriptionId,
  encodeRanges,
  encodeReadOk,
  encodeSubscribed,
  readRequest,
  subscribeRequest,
  type Frame,
  type Opcode,
  type OpcodeName,
  type Stage,
} from '@sluice/protocol'
import { result, type Answer } from './answers.js'
import type { Consuming } from './consuming.js'
import { unexpectedFrame } from './handshake.js'
import type { Producing } from './producing.js'
import type { Replying } from './replying.js'
import { REQUEST_NAMES, type RequestName } from './requests.js'

/** The connection on which a frame arrived. */
export interface Receiver {
  readonly producing: Producing
  readonly consuming: Consuming
  readonly replying: Replying
  takeHello(frame: Frame): void
  takeAuth(frame: Frame): void
  takeGoodbye(frame: Frame): void
  ping(frame: Frame): void
  request(name: RequestName, frame: Frame): void
  /** Answers a request. */
  answer(correlation: number, answer: Answer): void
  /** Answers on the channel of the frame. */
  reply(frame: Frame, opcode: number, payload: Uint8Array): void
}

type Handler = (receiver: Receiver, frame: Frame) => void

type ClientOpcode = {
  [Name in OpcodeName]: (typeof OPCODES)[Name]['sender'] extends 'server' ? never : Name
}[OpcodeName]

// A frame of the client without a handler, or a handler without a frame, does not compile.
const HANDLERS: { readonly [Name in ClientOpcode]: Handler } = {
  HELLO: (receiver, frame) => receiver.takeHello(frame),
  AUTH: (receiver, frame) => receiver.takeAuth(frame),
  PING: (receiver, frame) => receiver.ping(frame),
  PONG: () => {},
  GOODBYE: (receiver, frame) => receiver.takeGoodbye(frame),
  PUBLISH: ({ producing }, frame) => producing.publish(frame),
  ATOMIC: ({ producing }, frame) => producing.atomic(frame),
  SUBSCRIBE: (receiver, frame) => {
    const request = subscribeRequest(decodeControl(frame.bytes, frame.start, frame.end))
    const subscribed = receiver.consuming.subscribe(frame.channel, request)
    receiver.reply(frame, OP.SUBSCRIBE_OK, encodeSubscribed(subscribed))
  },
  READ: (receiver, frame) => {
    const request = readRequest(decodeControl(frame.bytes, frame.start, frame.end))
    const opened = receiver.consuming.read(frame.channel, request)
    receiver.reply(frame, OP.READ_OK, encodeReadOk(opened))
  },
  CREDIT: ({ consuming }, { channel, bytes, start, end }) =>
    consuming.credit(channel, decodeCredit(bytes, start, end)),
  STARTED: ({ consuming }, { channel, bytes, start, end }) => {
    const { subscriptionId, ranges } = decodeRanges('STARTED', bytes, start, end)
    consuming.started(channel, subscriptionId, ranges)
  },
  STARTING: ({ consuming }, { channel, bytes, start, end }) => {
    const { subscriptionId, ranges } = decodeRanges('STARTING', bytes, start, end)
    consuming.starting(channel, subscriptionId, ranges)
  },
  SETTLE: (receiver, frame) => {
    const { subscriptionId, items } = decodeSettle(frame.bytes, frame.start, frame.end)
    const stale = receiver.consuming.settle(frame.channel, subscriptionId, items)
    receiver.reply(frame, OP.SETTLE_OK, encodeRanges(subscriptionId, stale))
  },
  EXTEND: (receiver, frame) => {
    const extend = decodeExtend(frame.bytes, frame.start, frame.end)
    const stale = receiver.consuming.extend(frame.channel, extend)
    receiver.reply(frame, OP.SETTLE_OK, encodeRanges(extend.subscriptionId, stale))
  },
  UNSUBSCRIBE: (receiver, { channel, correlation, bytes, start, end }) => {
    receiver.consuming.unsubscribe(channel, decodeSubscriptionId('UNSUBSCRIBE', bytes, start, end))
    receiver.answer(correlation, result({}))
  },
  MAILBOX: ({ replying }, frame) => replying.open(frame),
  REPLY: ({ replying }, frame) => replying.reply(frame),
  ...(Object.fromEntries(REQUEST_NAMES.map((name) => [name, requestHandler(name)])) as Record<
    RequestName,
    Handler
  >),
}

function requestHandler(name: RequestName): Handler {
  return (receiver, frame) => receiver.request(name, frame)
}

interface Kind {
  readonly name: OpcodeName
  /** The stage at which a client may send the frame; only frames of the broker have `any`. */
  readonly stage: Stage
  readonly isEmpty: boolean
  /** Undefined if no client may send the frame. */
  readonly handler: Handler | undefined
}

// Indexed by number, because a look-up by name would take 2 % of the time that the broker spends on a single message.
const KINDS: (Kind | undefined)[] = []
for (const [name, { code, stage, layout }] of Object.entries(OPCODES) as [OpcodeName, Opcode][]) {
  const handler = (HANDLERS as Partial<Record<OpcodeName, Handler>>)[name]
  KINDS[code] = { name, stage, isEmpty: layout === 'empty', handler }
}

/**
 * Returns the handler of a frame that arrives at `stage`. `step` is the stage, or the step of the handshake, for the
 * error text.
 * @throws SluiceError UNKNOWN_OPCODE, MALFORMED_FRAME, UNEXPECTED_FRAME
 */
export function handlerOf({ opcode, flags, start, end }: Frame, stage: string, step: string): Handler {
  const kind = KINDS[opcode]
  if (kind === undefined) throw new SluiceError('UNKNOWN_OPCODE', `No frame kind has the number ${opcode}.`)
  const { name, isEmpty, handler } = kind
  if (flags !== 0)
    throw new SluiceError('MALFORMED_FRAME', `${name} has the frame flags ${flags}; this version has none.`)
  if (handler === undefined || kind.stage !== stage) throw unexpectedFrame(name, step)
  if (isEmpty && end !== start)
    throw new SluiceError('MALFORMED_FRAME', `${name} has ${end - start} bytes; it must have none.`)
  return handler
}
