import { expect, test } from 'vitest'
import { Reading } from './reading.js'

function readingOf(inFlightBytesMax: number): {
  reading: Reading
  disk: { isBehind: boolean; catchUp: () => void; waiting: number }
  calls: string[]
} {
  const calls: string[] = []
  const ready: (() => void)[] = []
  const disk = {
    isBehind: false,
    whenNotBehind: (call: () => void) => void ready.push(call),
    get waiting() {
      return ready.length
    },
    catchUp: () => {
      disk.isBehind = false
      for (const call of ready.splice(0)) call()
    },
  }
  const source = { pause: () => void calls.push('pause'), resume: () => void calls.push('resume') }
  return { reading: new Reading(disk, source, inFlightBytesMax), disk, calls }
}

test('reading pauses above the limit of unanswered bytes and resumes at half of it', () => {
  const { reading, calls } = readingOf(100)
  reading.accepted(100)
  expect(reading.isPaused).toBe(false)
  reading.accepted(101)
  reading.accepted(102)
  reading.answered(51)
  expect(calls).toEqual(['pause'])
  reading.answered(50)
  reading.answered(0)
  expect([calls, reading.isPaused]).toEqual([['pause', 'resume'], false])
})

test('reading waits once for a disk that is behind, and does not resume after close', () => {
  const { reading, disk, calls } = readingOf(100)
  disk.isBehind = true
  reading.waitForDisk()
  reading.waitForDisk()
  reading.answered(0)
  expect([calls, disk.waiting]).toEqual([['pause'], 1])
  disk.catchUp()
  expect(calls).toEqual(['pause', 'resume'])
  reading.waitForDisk()
  expect(calls).toEqual(['pause', 'resume'])
  disk.isBehind = true
  reading.accepted(0)
  reading.waitForDisk()
  reading.close()
  disk.catchUp()
  expect([calls, reading.isPaused]).toEqual([['pause', 'resume', 'pause'], true])
})
