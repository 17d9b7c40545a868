/**
 * Control frames that ask for something and are answered once: what each asks of the broker. A frame kind that is
 * missing here, and that no other part of the session handles, does not compile.
 */
import {
  ERRORS,
  OP,
  SluiceError,
  cancelRequest,
  closeConsumerRequest,
  consumersRequest,
  discardRequest,
  encodeControl,
  encodeMessages,
  ensureRequest,
  historyRequest,
  nameRequest,
  onlyFields,
  peekRequest,
  redriveRequest,
  replayRequest,
  rescheduleRequest,
  type Body,
  type OpcodeName,
} from '@sluice/protocol'
import type { Broker } from '../broker/broker.js'
import type { Caller, CutShort } from '../broker/operator.js'

/** Who asks. */
export interface Asker {
  readonly broker: Broker
  readonly caller: Caller
  /** Largest payload of an answer. */
  readonly payloadBytesMax: number
}

export interface Answer {
  readonly opcode: number
  readonly payload: Uint8Array
}

type Request = (asker: Asker, body: Body) => Answer | Promise<Answer>

/** Queues in one answer to LIST: with names of 255 bytes, twice in each, they fit a control frame. */
const LIST_PAGE = 40

function result(body: object): Answer {
  return { opcode: OP.RESULT, payload: encodeControl(body as Body) }
}

// A fault that cut a page short travels with what the page had done by then.
function done(page: CutShort): Answer {
  const { error } = page
  return result(
    error === undefined ? page : { ...page, error: { ...error, code: ERRORS[error.code].number } },
  )
}

export const REQUESTS = {
  ENSURE: ({ broker }, body) => result(broker.catalog.ensure(ensureRequest(body))),
  GET: ({ broker }, body) => result({ queue: broker.catalog.info(nameRequest('GET', body)) }),
  LIST: ({ broker }, body) => result(broker.catalog.list(afterName(body), LIST_PAGE)),
  DELETE: ({ broker }, body) => result({ messages: broker.catalog.delete(nameRequest('DELETE', body)) }),
  PURGE: ({ broker }, body) => result({ messages: broker.catalog.purge(nameRequest('PURGE', body)) }),
  PAUSE: ({ broker }, body) => result({ changed: broker.catalog.pause(nameRequest('PAUSE', body)) }),
  RESUME: ({ broker }, body) => result({ changed: broker.catalog.resume(nameRequest('RESUME', body)) }),
  CANCEL: ({ broker }, body) => result(broker.cancel(cancelRequest(body))),
  RESCHEDULE: ({ broker }, body) => result(broker.reschedule(rescheduleRequest(body))),
  CONSUMERS: ({ broker }, body) => result(broker.consumers(consumersRequest(body))),
  CLOSE_CONSUMER: ({ broker }, body) => {
    const { name, id } = closeConsumerRequest(body)
    return result(broker.closeConsumer(name, id))
  },
  PEEK: async ({ broker, caller, payloadBytesMax }, body) => ({
    opcode: OP.MESSAGES,
    payload: encodeMessages(await broker.peek(peekRequest(body), caller, payloadBytesMax), payloadBytesMax),
  }),
  REDRIVE: async ({ broker, caller }, body) => done(await broker.redrive(redriveRequest(body), caller)),
  DISCARD: async ({ broker, caller }, body) => done(await broker.discard(discardRequest(body), caller)),
  REPLAY: async ({ broker, caller }, body) => done(await broker.replay(replayRequest(body), caller)),
  HISTORY: async ({ broker, caller }, body) => result(await broker.history(historyRequest(body), caller)),
} as const satisfies Partial<Record<OpcodeName, Request>>

export type RequestName = keyof typeof REQUESTS

const LONG_REQUESTS = ['PEEK', 'REDRIVE', 'DISCARD', 'REPLAY', 'HISTORY'] as const satisfies RequestName[]
type LongRequestName = (typeof LONG_REQUESTS)[number]
const LONG: ReadonlySet<OpcodeName> = new Set(LONG_REQUESTS)

/** Whether the request reads from disk and takes several turns. */
export function isLong(name: RequestName): name is LongRequestName {
  return LONG.has(name)
}

function afterName(body: Body): string {
  onlyFields('LIST', body, ['after'])
  const after = body['after'] ?? ''
  if (typeof after === 'string') return after
  throw new SluiceError('INVALID_ARGUMENT', '`after` must be the name of a queue.')
}
