/** Compares the limits with each other and with the layouts: everything that the limits permit fits its frame and its field. */
import { expect, it } from 'vitest'
import { RANGES_HEAD_BYTES, RANGE_BYTES, SETTLE_HEAD_BYTES, SETTLE_ITEM_BYTES } from './consuming.js'
import { FRAME_HEADER_BYTES } from './frame.js'
import { LIMITS } from './limits.js'
import {
  ATOMIC_OK_HEAD_BYTES,
  DUPLICATE_BYTES,
  MESSAGE_OVERHEAD_BYTES,
  PLACE_BYTES,
  PUBLISH_OK_ITEM_BYTES,
} from './producing.js'
import { RECORD_TIME_BYTES } from './record.js'

/** Size of an offset in msgpack: its type and eight bytes. */
const PACKED_OFFSET_BYTES = 9
/** Upper bound for the other fields of a request that lists offsets, without its queue names. */
const PAGE_REQUEST_BYTES = 8 * 1024
const U16_MAX = 0xffff

/** The relation, the size of what must fit, and the size of its container. */
const RELATIONS: readonly (readonly [string, number, number])[] = [
  [
    'the default largest message fits a frame of the default size',
    LIMITS.messageBytesDefault + MESSAGE_OVERHEAD_BYTES,
    LIMITS.frameBytesDefault,
  ],
  [
    'the largest message fits the largest frame',
    LIMITS.messageBytesMax + MESSAGE_OVERHEAD_BYTES,
    LIMITS.frameBytesMax,
  ],
  [
    'the largest batch fits a frame of the default size',
    LIMITS.batchBytesMax + MESSAGE_OVERHEAD_BYTES,
    LIMITS.frameBytesDefault,
  ],
  ['the target of a batch is within the largest batch', LIMITS.batchBytesTarget, LIMITS.batchBytesMax],
  [
    'a batch of scheduled messages fits every agreed frame',
    LIMITS.batchBytesScheduledTarget + MESSAGE_OVERHEAD_BYTES,
    LIMITS.frameBytesMin,
  ],
  [
    'the largest control body fits a frame of the default size',
    LIMITS.controlBytesMax + FRAME_HEADER_BYTES,
    LIMITS.frameBytesDefault,
  ],
  [
    'the items of a SETTLE fit a frame of the default size',
    FRAME_HEADER_BYTES + SETTLE_HEAD_BYTES + LIMITS.rangesMax * SETTLE_ITEM_BYTES,
    LIMITS.frameBytesDefault,
  ],
  // The broker refuses a client whose frames have no room for the largest batch (PROTOCOL.md, What is agreed). So
  // anything of at most `batchBytesMax` bytes fits a frame to any client.
  [
    'the ranges of the largest credit fit a frame to any client',
    FRAME_HEADER_BYTES + RANGES_HEAD_BYTES + LIMITS.creditMessagesMax * RANGE_BYTES,
    LIMITS.batchBytesMax,
  ],
  [
    'the duplicates of a batch fit a frame to any client',
    FRAME_HEADER_BYTES + PUBLISH_OK_ITEM_BYTES + LIMITS.batchCountMax * DUPLICATE_BYTES,
    LIMITS.batchBytesMax,
  ],
  [
    'the places and duplicates of an atomic step fit a frame to any client',
    FRAME_HEADER_BYTES +
      ATOMIC_OK_HEAD_BYTES +
      LIMITS.atomicBatchesMax * PLACE_BYTES +
      LIMITS.atomicMessagesMax * DUPLICATE_BYTES,
    LIMITS.batchBytesMax,
  ],
  [
    'a list of offsets fits a control body',
    LIMITS.pageMessagesMax * PACKED_OFFSET_BYTES + 3 * LIMITS.queueNameBytesMax + PAGE_REQUEST_BYTES,
    LIMITS.controlBytesMax,
  ],
  [
    'the options of a record fit their u16 length',
    3 * RECORD_TIME_BYTES + (1 + LIMITS.keyBytesMax) + (1 + LIMITS.idBytesMax) + LIMITS.headersBytesMax,
    U16_MAX,
  ],
]

it.each(RELATIONS)('%s', (_what, neededBytes, bytesMax) => {
  expect(neededBytes).toBeLessThanOrEqual(bytesMax)
})
