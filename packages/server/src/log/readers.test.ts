/** Reads that fail without damage. */
import { describe, expect, test } from 'vitest'
import type { Disk, DiskFile } from './log.js'
import { Readers, type Reader } from './readers.js'

const SEGMENT = 4096

class Trouble extends Error {
  readonly code: string

  constructor(code: string) {
    super(`${code}: something is missing`)
    this.code = code
  }
}

/** A disk on which a given number of opens and reads fail. */
class Failing {
  opens = 0
  reads = 0
  failOpens = 0
  failReads = 0
  opened = new Set<string>()
  sleeps: number[] = []
  notices: string[] = []
  bytes = SEGMENT
  pause = (): Promise<void> => Promise.resolve()
  readonly readers: Readers

  constructor() {
    const disk = {
      open: (name: string): Promise<DiskFile> => {
        this.opens++
        if (this.failOpens > 0) {
          this.failOpens--
          return Promise.reject(new Trouble('EMFILE'))
        }
        this.opened.add(name)
        return Promise.resolve({
          bytes: this.bytes,
          read: (position, length) => {
            this.reads++
            if (this.failReads-- > 0) return Promise.reject(new Trouble('EIO'))
            return Promise.resolve(new Uint8Array(length).fill(position))
          },
          write: () => Promise.resolve(),
          sync: () => Promise.resolve(),
          close: () => {
            this.opened.delete(name)
            return Promise.resolve()
          },
        })
      },
    } as Partial<Disk> as Disk
    this.readers = new Readers({
      disk,
      notify: (kind, text) => this.notices.push(`${kind}: ${text}`),
      sleep: (ms) => {
        this.sleeps.push(ms)
        return this.pause()
      },
    })
  }

  async borrow<T>(number: number, use: (reader: Reader) => Promise<T>): Promise<T> {
    const reader = this.readers.acquire(number, SEGMENT)
    try {
      return await use(reader)
    } finally {
      this.readers.release(reader)
    }
  }
}

describe('a failed read', () => {
  test.each(['failOpens', 'failReads'] as const)('is retried after increasing pauses: %s', async (what) => {
    const failing = new Failing()
    failing[what] = 3
    expect(await failing.borrow(1, (reader) => reader.read(7, 2))).toEqual(Uint8Array.of(7, 7))
    expect(failing.sleeps).toEqual([10, 40, 160])
    // The operator is notified once.
    expect(failing.notices).toHaveLength(1)
    expect(failing.notices[0]).toMatch(/^read-failed: .*0001\.segment could not be read: E[A-Z]+/)
  })

  test('finally fails with a retryable code, and the next read is retried as often', async () => {
    const failing = new Failing()
    failing.failOpens = 10
    const expected = { code: 'READ_FAILED', scope: 'request', retryable: true }
    await expect(failing.borrow(1, (reader) => reader.read(7, 2))).rejects.toMatchObject(expected)
    expect(failing.sleeps).toHaveLength(4)
    await expect(failing.borrow(1, (reader) => reader.read(7, 2))).rejects.toMatchObject(expected)
    expect(failing.notices).toHaveLength(1)
    expect(await failing.borrow(1, (reader) => reader.read(7, 2))).toHaveLength(2)
    failing.failReads = 1
    await failing.borrow(1, (reader) => reader.read(7, 2))
    expect(failing.notices).toHaveLength(2)
  })

  test('closes unused files, to free a descriptor', async () => {
    const failing = new Failing()
    for (let number = 1; number <= 5; number++) await failing.borrow(number, (reader) => reader.read(0, 1))
    expect(failing.opened.size).toBe(5)
    const used = failing.readers.acquire(3, SEGMENT)
    failing.failOpens = 1
    await failing.borrow(9, (reader) => reader.read(0, 1))
    expect([...failing.opened].map((name) => Number.parseInt(name, 10))).toEqual([3, 9])
    failing.readers.release(used)
  })

  test('is not retried in a freed segment or a closed log', async () => {
    for (const end of [(readers: Readers) => void readers.drop(1), (readers: Readers) => readers.close()]) {
      const failing = new Failing()
      failing.failReads = 1
      const reading = failing.borrow(1, (reader) => {
        const read = reader.read(0, 1)
        end(failing.readers)
        return read
      })
      await expect(reading).rejects.toMatchObject({ code: 'READ_FAILED' })
      expect(failing.reads).toBe(1)
      expect(failing.sleeps).toEqual([])
      await new Promise((resolve) => setImmediate(resolve))
      expect(failing.opened.size).toBe(0)
    }
  })

  test('of a file of the wrong size is damage, and is not retried', async () => {
    const failing = new Failing()
    failing.bytes = SEGMENT - 1
    await expect(failing.borrow(1, (reader) => reader.read(0, 1))).rejects.toMatchObject({
      code: 'LOG_CORRUPT',
    })
    expect(failing.sleeps).toEqual([])
    expect(failing.opened.size).toBe(0)
  })

  test('does not block other reads while it pauses', async () => {
    const failing = new Failing()
    let wake = (): void => {}
    const pause = new Promise<void>((resolve) => (wake = resolve))
    failing.pause = () => pause
    await failing.borrow(2, (reader) => reader.read(0, 1))
    failing.failOpens = 2
    const pausing = [10, 11].map((number) => failing.borrow(number, (reader) => reader.read(0, 1)))
    await new Promise((resolve) => setImmediate(resolve))
    expect(failing.sleeps).toEqual([10, 10])
    expect(await failing.borrow(3, (reader) => reader.read(0, 1))).toHaveLength(1)
    wake()
    expect(await Promise.all(pausing)).toHaveLength(2)
  })
})
