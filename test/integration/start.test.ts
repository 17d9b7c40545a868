/** Options with which a server does not start. */
import { startServer } from '@sluice/server'
import { expect, it } from 'vitest'
import { scratchDirectory } from '../rig/scratch.js'

it('starts if each page of the state fits in a segment, and does not start with smaller segments', async () => {
  const scratch = await scratchDirectory('start')
  try {
    const options = { port: 0, dataDir: scratch.path, lowFreeBytes: 0, messageBytesMax: 16 << 10 }
    const least = 132 << 10
    await expect(startServer({ ...options, segmentBytes: least - 4096 })).rejects.toMatchObject({
      code: 'INVALID_ARGUMENT',
      message: `segmentBytes is ${least - 4096}; a broker needs at least ${least}.`,
    })
    const server = await startServer({ ...options, segmentBytes: least })
    await server.stop()
  } finally {
    await scratch.dispose()
  }
})
