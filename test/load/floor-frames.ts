/**
 * Frames of the bare loop: u32 length of the rest, u8 type, u32 count. PUBLISH and DELIVER continue with `count`
 * records, each a u32 length and its bytes. CONFIRM and ACK count messages; CREDIT counts additional messages.
 */
import type { Socket } from 'node:net'

export const FLOOR = { publish: 1, confirm: 2, credit: 3, deliver: 4, ack: 5 } as const
export const FLOOR_HEADER_BYTES = 9

/** Calls `each` for every frame that arrives, and `ended` after the frames of each chunk. */
export function onFloorFrames(
  socket: Socket,
  each: (type: number, count: number, payload: Buffer) => void,
  ended: () => void = () => {},
): void {
  let rest: Buffer = Buffer.alloc(0)
  socket.on('data', (chunk) => {
    const bytes = rest.length === 0 ? chunk : Buffer.concat([rest, chunk])
    let at = 0
    while (bytes.length - at >= 4) {
      const end = at + 4 + bytes.readUInt32LE(at)
      if (end > bytes.length) break
      each(bytes[at + 4]!, bytes.readUInt32LE(at + 5), bytes.subarray(at + FLOOR_HEADER_BYTES, end))
      at = end
    }
    rest = bytes.subarray(at)
    ended()
  })
}

export function floorFrame(type: number, count: number, payloadBytes: number): Buffer {
  const frame = Buffer.allocUnsafe(FLOOR_HEADER_BYTES)
  frame.writeUInt32LE(5 + payloadBytes, 0)
  frame[4] = type
  frame.writeUInt32LE(count, 5)
  return frame
}
