/**
 * Requests with one answer, and the call of the broker for each request. A handler takes a decoded body and returns a
 * plain object. The session decodes the body, and answers.ts encodes the answer. If an opcode of a client is neither
 * here nor in frames.ts, the code does not compile.
 *
 * Invariant: when a request that changes nothing fails, only that request ends, whatever its handler or the encoding of
 * its answer throws. `handle` and `handleLong` ensure this, and handlers are called only through them.
 */
import {
  SluiceError,
  bindingRequest,
  bindingsRequest,
  cancelRequest,
  closeConsumerRequest,
  consumersRequest,
  discardRequest,
  ensureRequest,
  ensureGroupRequest,
  explainRequest,
  ensureStreamRequest,
  historyRequest,
  kindOf,
  kindRequest,
  listRequest,
  moveRequest,
  nameRequest,
  peekRequest,
  redriveRequest,
  replayRequest,
  rescheduleRequest,
  scheduleNameRequest,
  scheduleRequest,
  schedulesRequest,
  routesRequest,
  type Body,
  type OpcodeName,
} from '@sluice/protocol'
import type { Broker } from '../broker/broker.js'
import type { Caller } from '../broker/disk-requests.js'

/** The values that a handler needs besides the body of the request. */
export interface RequestContext {
  readonly broker: Broker
  readonly caller: Caller
  /** Maximum payload of an answer. */
  readonly payloadBytesMax: number
}

type Request = (context: RequestContext, body: Body) => object | Promise<object>

/**
 * Number of queues or streams in one answer to LIST. Each queue can have two names of 255 bytes, its own and that of its
 * dead-letter queue; 40 such queues fit in a control frame.
 */
const LIST_PAGE = 40
/** Number of schedules in one answer to SCHEDULES. With names, a cron expression and an error, each takes up to 5.5 KiB. */
const SCHEDULES_PAGE = 10

const REQUESTS = {
  ENSURE: ({ broker: { catalog, groups, streams }, caller }, body) => {
    const kind = kindOf(body)
    if (kind === 'stream') return streams.ensure(ensureStreamRequest(body))
    if (kind === 'queue') return catalog.ensure(ensureRequest(body))
    const request = ensureGroupRequest(body)
    return groups.whenRead(request.name, request.from, caller, () => groups.ensure(request))
  },
  GET: ({ broker }, body) => {
    const { name, kind } = kindRequest('GET', body)
    if (kind === 'stream') return { stream: broker.streams.info(name) }
    if (kind === 'group') return { group: broker.groups.info(name) }
    return { queue: broker.catalog.info(name) }
  },
  LIST: ({ broker }, body) => {
    const { after, kind, stream } = listRequest(body)
    if (kind === 'stream') return broker.streams.list(after, LIST_PAGE)
    if (kind === 'group') return broker.groups.list(stream, after, LIST_PAGE)
    return broker.catalog.list(after, LIST_PAGE)
  },
  DELETE: ({ broker }, body) => {
    const { name, kind } = kindRequest('DELETE', body)
    if (kind === 'stream') return { messages: broker.streams.delete(name) }
    return { messages: kind === 'group' ? broker.groups.delete(name) : broker.catalog.delete(name) }
  },
  MOVE: ({ broker: { groups }, caller }, body) => {
    const request = moveRequest(body)
    return groups.whenRead(request.name, request.to, caller, () => groups.move(request))
  },
  PURGE: ({ broker }, body) => ({ messages: broker.catalog.purge(nameRequest('PURGE', body)) }),
  PAUSE: ({ broker }, body) => ({ changed: broker.catalog.pause(nameRequest('PAUSE', body)) }),
  RESUME: ({ broker }, body) => ({ changed: broker.catalog.resume(nameRequest('RESUME', body)) }),
  CANCEL: ({ broker: { operator }, caller }, body) => {
    const ref = cancelRequest(body)
    return operator.whenRead(ref, caller, () => operator.cancel(ref))
  },
  RESCHEDULE: ({ broker: { operator }, caller }, body) => {
    const request = rescheduleRequest(body)
    return operator.whenRead(request, caller, () => operator.reschedule(request))
  },
  BIND: ({ broker }, body) => broker.topics.bind(bindingRequest('BIND', body)),
  UNBIND: ({ broker }, body) => broker.topics.unbind(bindingRequest('UNBIND', body)),
  BINDINGS: ({ broker }, body) => broker.topics.list(bindingsRequest(body)),
  ROUTES: ({ broker }, body) => broker.topics.routes(routesRequest(body)),
  CONSUMERS: ({ broker }, body) => broker.catalog.consumers(consumersRequest(body)),
  CLOSE_CONSUMER: ({ broker }, body) => {
    const { name, id } = closeConsumerRequest(body)
    return broker.leases.closeConsumer(name, id)
  },
  SCHEDULE: ({ broker }, body) => broker.schedules.ensure(scheduleRequest(body)),
  SCHEDULES: ({ broker }, body) => {
    const request = schedulesRequest(body)
    if (request.name === undefined) return broker.schedules.list(request.after, SCHEDULES_PAGE)
    return { schedule: broker.schedules.get(request.name, request.ticks) }
  },
  UNSCHEDULE: ({ broker }, body) => broker.schedules.delete(scheduleNameRequest('UNSCHEDULE', body)),
  RUN_SCHEDULE: ({ broker }, body) => broker.schedules.run(scheduleNameRequest('RUN_SCHEDULE', body)),
  PEEK: async ({ broker, caller, payloadBytesMax }, body) =>
    broker.operator.peek(peekRequest(body), caller, payloadBytesMax),
  REDRIVE: async ({ broker, caller }, body) => broker.operator.redrive(redriveRequest(body), caller),
  DISCARD: async ({ broker, caller }, body) => broker.operator.discard(discardRequest(body), caller),
  REPLAY: async ({ broker, caller }, body) => broker.replays.page(replayRequest(body), caller),
  HISTORY: async ({ broker, caller }, body) => broker.history.page(historyRequest(body), caller),
  EXPLAIN: async ({ broker, caller }, body) => {
    const request = explainRequest(body)
    const { operator, explainer } = broker
    return operator.whenRead({ ...request, id: undefined }, caller, () => explainer.explain(request))
  },
} as const satisfies Partial<Record<OpcodeName, Request>>

export type RequestName = keyof typeof REQUESTS

export const REQUEST_NAMES = Object.keys(REQUESTS) as RequestName[]

const LONG: ReadonlySet<RequestName> = new Set<RequestName>([
  'PEEK',
  'REDRIVE',
  'DISCARD',
  'REPLAY',
  'HISTORY',
  'EXPLAIN',
])
/** Requests that read from disk only if the message or the place that they name is not in memory. */
const MAY_READ: Partial<Readonly<Record<RequestName, (broker: Broker, body: Body) => boolean>>> = {
  CANCEL: ({ operator }, body) => operator.mustRead(body),
  RESCHEDULE: ({ operator }, body) => operator.mustRead(body),
  ENSURE: ({ groups }, { name, fromMs }) => groups.mustRead({ name, timeMs: fromMs }),
  MOVE: ({ groups }, { name, toMs }) => groups.mustRead({ name, timeMs: toMs }),
}

/** The type of the answer to a request, before the answer is encoded. */
export type AnswerOf<Name extends RequestName> = Awaited<ReturnType<(typeof REQUESTS)[Name]>>

/** Whether the request reads from disk and takes several turns. */
export function isLong(name: RequestName, { broker }: RequestContext, body: Body): boolean {
  return LONG.has(name) || MAY_READ[name]?.(broker, body) === true
}

/** Handles a request and encodes its answer. @throws SluiceError; any other error when a change failed half-way */
export function handle<Encoded>(
  name: RequestName,
  context: RequestContext,
  body: Body,
  encode: (answer: AnswerOf<RequestName>) => Encoded,
): Encoded {
  try {
    noteUse(context, body)
    // Only a long request returns a promise.
    return encode(REQUESTS[name](context, body) as AnswerOf<RequestName>)
  } catch (error) {
    throw changesNothing(name, body) ? readFailure(error) : error
  }
}

/** Like `handle`, for a request that takes several turns. */
export async function handleLong<Encoded>(
  name: RequestName,
  context: RequestContext,
  body: Body,
  encode: (answer: AnswerOf<RequestName>) => Encoded,
): Promise<Encoded> {
  try {
    noteUse(context, body)
    return encode(await REQUESTS[name](context, body))
  } catch (error) {
    throw changesNothing(name, body) ? readFailure(error) : error
  }
}

// A queue that a request names is in use; LIST names none.
function noteUse({ broker }: RequestContext, body: Body): void {
  broker.unused.usedName(body['name'])
  broker.unused.usedName(body['to'])
  broker.unused.usedName(body['target'])
}

const READING: ReadonlySet<RequestName> = new Set<RequestName>([
  'GET',
  'LIST',
  'BINDINGS',
  'ROUTES',
  'CONSUMERS',
  'EXPLAIN',
  'SCHEDULES',
  'PEEK',
  'HISTORY',
])
/** Requests that have a dry run, in which they change nothing. */
const DRY_RUNNABLE: ReadonlySet<RequestName> = new Set<RequestName>(['REDRIVE', 'DISCARD', 'REPLAY'])

function changesNothing(name: RequestName, body: Body): boolean {
  return READING.has(name) || (DRY_RUNNABLE.has(name) && body['dryRun'] === true)
}

// A defect in a request that changes nothing cannot leave the state half changed, so it ends only the request.
function readFailure(error: unknown): SluiceError {
  if (error instanceof SluiceError) return error
  const why = error instanceof Error ? error.message : String(error)
  return new SluiceError('READ_FAILED', `The request failed: ${why}.`, { cause: error })
}
